"""How long a block is: about its target, shorter for a first character that it brings sooner, longer for many rows."""

from __future__ import annotations

import numpy as np
import pytest

from model.network.sampling import SamplingParams
from model.stepper import Block
from service.engine.scheduler import HAND_OUT_S, MAX_STEPS, Scheduler
from service.engine.sequence import Sequence

STEP_S, BLOCK_S = 0.001, 0.020


def text(unread: int = 0, wrote: bool = True) -> Sequence:
    sequence = Sequence(np.zeros(1 + unread, np.int32), 0, 10**6, SamplingParams(), 1, None)
    sequence.wrote = wrote
    return sequence


def block(*texts: Sequence) -> Block:
    """The block of these, when a step has long been taking STEP_S."""
    scheduler = Scheduler(len(texts), BLOCK_S)
    scheduler._step_s = STEP_S
    scheduler.waiting.extend(texts)
    scheduler.admit()
    return scheduler.block()


def test_a_block_takes_its_target() -> None:
    assert len(block(text(), text()).forced_ids) == 20


def test_a_long_prompt_cuts_no_block_short_and_takes_one_row() -> None:
    """100,000 characters to read change nothing of the others' blocks, and wait for no turn of their own."""
    made = block(*[text() for _ in range(31)], text(unread=100_000, wrote=False))
    assert len(made.forced_ids) == len(block(*[text() for _ in range(32)]).forced_ids)
    assert made.steps.tolist() == [len(made.forced_ids)] * 32


@pytest.mark.parametrize(("unread", "steps"), [(0, 5), (4, 5), (11, 12), (18, 19), (19, 20), (500, 20)])
def test_a_first_character_is_not_kept_waiting(unread: int, steps: int) -> None:
    """The block ends with it, but is no shorter than a quarter: a block has its costs."""
    assert len(block(text(), text(unread, wrote=False)).forced_ids) == steps


def test_many_rows_get_longer_blocks() -> None:
    """A block is worth the handing out: twice its cost as a rule, once for a newcomer."""
    rows = 200
    assert len(block(*[text() for _ in range(rows)]).forced_ids) == int(2 * rows * HAND_OUT_S / STEP_S)
    hurried = block(*[text() for _ in range(rows - 1)], text(0, wrote=False))
    assert len(hurried.forced_ids) == int(rows * HAND_OUT_S / STEP_S)


def test_no_block_is_longer_than_the_most() -> None:
    scheduler = Scheduler(1, BLOCK_S)
    scheduler._step_s = 1e-7
    scheduler.waiting.append(text())
    scheduler.admit()
    assert len(scheduler.block().forced_ids) == MAX_STEPS
