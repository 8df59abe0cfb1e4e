"""How long a block is: about its target, shorter if a first character comes sooner by it, longer for many rows."""

from __future__ import annotations

import numpy as np
import pytest

from model.network.sampling import SamplingParams
from model.stepper import Block
from service.engine.scheduler import MAX_RETRY_AFTER_S, MAX_STEPS, OUTPUT_COST_S, Scheduler
from service.engine.sequence import Sequence, SequenceRequest

STEP_S, BLOCK_S = 0.001, 0.020


def sequence(unread: int = 0, has_output: bool = True) -> Sequence:
    request = SequenceRequest(np.zeros(1 + unread, np.int32), 0, 10**6, SamplingParams(), 1)
    sequence = Sequence(request, now=0.0)
    if has_output:
        sequence.remaining -= 1
    return sequence


def block(*sequences: Sequence, step_s: float = STEP_S) -> Block:
    """The block of these, when a step takes step_s."""
    scheduler = Scheduler(len(sequences), BLOCK_S, step_s)
    scheduler.add(sequences)
    scheduler.admit()
    return scheduler.next_block()


def test_a_block_takes_its_target() -> None:
    """Blocks of 20 ms, with steps of 1 ms, have 20 steps."""
    assert len(block(sequence(), sequence()).forced_ids) == 20


def test_a_long_prompt_cuts_no_block_short_and_takes_one_row() -> None:
    """100,000 characters to read change nothing of the others' blocks, and wait for no turn of their own."""
    made = block(*[sequence() for _ in range(31)], sequence(unread=100_000, has_output=False))
    assert len(made.forced_ids) == len(block(*[sequence() for _ in range(32)]).forced_ids)
    assert made.steps.tolist() == [len(made.forced_ids)] * 32


@pytest.mark.parametrize(("unread", "steps"), [(0, 5), (4, 5), (11, 12), (18, 19), (19, 20), (500, 20)])
def test_a_first_character_does_not_wait(unread: int, steps: int) -> None:
    """The block ends with it, but is no shorter than a quarter: a block has its costs."""
    assert len(block(sequence(), sequence(unread, has_output=False)).forced_ids) == steps


def test_many_rows_get_longer_blocks() -> None:
    """A block takes at least twice what sending its chunks costs; once, if a first character comes sooner by it."""
    rows = 200
    assert len(block(*[sequence() for _ in range(rows)]).forced_ids) == int(2 * rows * OUTPUT_COST_S / STEP_S)
    hurried = block(*[sequence() for _ in range(rows - 1)], sequence(0, has_output=False))
    assert len(hurried.forced_ids) == int(rows * OUTPUT_COST_S / STEP_S)


def test_no_block_is_longer_than_the_maximum() -> None:
    """However fast a step is."""
    assert len(block(sequence(), step_s=1e-7).forced_ids) == MAX_STEPS


def test_the_wait_is_the_queue_over_the_measured_speed() -> None:
    """Before any block 1 s; then the queue's steps by the steps a second, at least 1 and at most the maximum."""
    scheduler = Scheduler(2, BLOCK_S)
    assert scheduler.estimate_wait_s(10**9) == 1
    made = block(sequence(), sequence())
    scheduler.record(made, seconds=float(made.steps.sum()) / 1000)  # 1000 steps a second
    assert [scheduler.estimate_wait_s(n) for n in (0, 1, 1000, 1001, 20_000)] == [1, 1, 1, 2, 20]
    assert scheduler.estimate_wait_s(10**9) == MAX_RETRY_AFTER_S
