"""How long a block is: about its target, shorter if a first character comes sooner by it, longer for many rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from model.stepper import NO_SCORE, Block, BlockResult
from service.engine.scheduler import (
    MAX_RETRY_AFTER_S,
    MAX_STEPS,
    MIN_BLOCK_S_PER_ROW,
    TARGET_BLOCK_S_PER_ROW,
    Scheduler,
)
from service.engine.sequence import Sequence, SequenceRequest
from service.engine.stream import StreamGroup

STEP_S, BLOCK_S = 0.001, 0.020


def sequence(unread: int = 0, has_output: bool = True) -> Sequence:
    request = SequenceRequest(np.zeros(1 + unread, np.int32), 0, 10**6, SamplingParams(), 1)
    sequence = Sequence(request, now=0.0)
    if has_output:
        sequence.advance(np.zeros(1, np.int32))
    return sequence


def block(*sequences: Sequence, step_s: float = STEP_S) -> Block:
    """The block of these, when a step takes step_s."""
    scheduler = Scheduler(len(sequences), BLOCK_S, step_s)
    scheduler.add(sequences)
    scheduler.admit()
    return scheduler.next_block()


def result(steps: NDArray[np.int64], steps_run: int) -> BlockResult:
    """What a block produced whose rows made so many steps."""
    empty = np.zeros((steps_run, len(steps)))
    return BlockResult(steps.astype(np.int32), steps_run, empty.astype(np.int32), empty.astype(np.float32))


def test_a_block_takes_its_target() -> None:
    """Blocks of 20 ms, with steps of 1 ms, have 20 steps."""
    assert len(block(sequence(), sequence()).forced_ids) == 20


def test_a_long_prompt_cuts_no_block_short_and_takes_one_row() -> None:
    """100,000 characters to read change nothing of the others' blocks, and wait for no turn of their own."""
    made = block(*[sequence() for _ in range(31)], sequence(unread=100_000, has_output=False))
    assert len(made.forced_ids) == len(block(*[sequence() for _ in range(32)]).forced_ids)
    assert made.steps.tolist() == [len(made.forced_ids)] * 32


@pytest.mark.parametrize(("unread", "steps"), [(0, 4), (3, 4), (11, 12), (18, 19), (19, 20), (500, 20)])
def test_a_first_character_does_not_wait(unread: int, steps: int) -> None:
    """The block ends with it, but takes several times what sending its chunks costs."""
    others = [sequence() for _ in range(int(4.5 * STEP_S / MIN_BLOCK_S_PER_ROW))]
    assert len(block(*others, sequence(unread, has_output=False)).forced_ids) == steps


def test_a_part_of_a_longer_text_cuts_no_block_short() -> None:
    """Its first character follows others of its text: nobody waits for it."""
    part = sequence(has_output=False)
    part.request = replace(part.request, is_part=True)
    assert len(block(sequence(), part).forced_ids) == 20


def test_many_rows_get_longer_blocks() -> None:
    """A block takes several times what sending its chunks costs, and less if a first character comes sooner by it."""
    rows = 200
    assert len(block(*[sequence() for _ in range(rows)]).forced_ids) == int(rows * TARGET_BLOCK_S_PER_ROW / STEP_S)
    hurried = block(*[sequence() for _ in range(rows - 1)], sequence(0, has_output=False))
    assert len(hurried.forced_ids) == int(rows * MIN_BLOCK_S_PER_ROW / STEP_S)


@pytest.mark.parametrize("rows", [1, 8, 100])
def test_a_block_can_be_interrupted_early(rows: int) -> None:
    """After a third of its time at most, but with many rows not before sending its chunks is worth it."""
    planned = block(*[sequence() for _ in range(rows)])
    assert int(rows * MIN_BLOCK_S_PER_ROW / STEP_S) <= planned.least_steps <= len(planned.forced_ids) / 3


def test_a_step_takes_its_part_of_the_steps_that_were_run() -> None:
    """Also if a constraint stopped each row long before: those rows were computed on."""
    scheduler = Scheduler(2, BLOCK_S, STEP_S)
    for _ in range(20):
        scheduler.record(result(np.array([3, 1]), steps_run=40), seconds=0.080)
    assert scheduler.step_s == pytest.approx(0.002, rel=0.01)


def test_no_block_is_longer_than_the_maximum() -> None:
    """However fast a step is."""
    assert len(block(sequence(), step_s=1e-7).forced_ids) == MAX_STEPS


def test_the_wait_is_the_queue_over_the_measured_speed() -> None:
    """Before any block 1 s; then the queue's steps by the steps a second, at least 1 and at most the maximum."""
    scheduler = Scheduler(2, BLOCK_S)
    assert scheduler.estimate_wait_s(10**9) == 1
    scheduler.record(result(np.array([20, 20]), steps_run=20), seconds=0.040)  # 1000 steps a second
    assert [scheduler.estimate_wait_s(n) for n in (0, 1, 1000, 1001, 20_000)] == [1, 1, 1, 2, 20]
    assert scheduler.estimate_wait_s(10**9) == MAX_RETRY_AFTER_S


def test_free_slots_go_to_the_request_that_has_the_fewest() -> None:
    """Eight sequences of one request came first; each of two other requests gets the next slot that is free."""
    many, other = StreamGroup(), StreamGroup()
    first = [Sequence(sequence().request, 0.0, many.stream(i)) for i in range(8)]
    scheduler = Scheduler(4, BLOCK_S, STEP_S)
    scheduler.add(first)
    assert [s for _, s in scheduler.admit()] == first[:4]
    single, pair = sequence(), [Sequence(sequence().request, 0.0, other.stream(i)) for i in range(2)]
    scheduler.add([single, *pair])
    scheduler.release(0)
    assert [s for _, s in scheduler.admit()] == [single]
    for slot in (1, 2):
        scheduler.release(slot)
    assert [s for _, s in scheduler.admit()] == [pair[0], first[4]]
    assert list(scheduler.waiting) == [*first[5:], pair[1]]


def part(group: StreamGroup, index: int, *, has_output: bool = True) -> Sequence:
    """A part of a longer text."""
    made = Sequence(replace(sequence().request, is_part=True), 0.0, group.stream(index))
    if has_output:
        made.advance(np.zeros(3, np.int32))
    return made


def test_a_part_ends_for_a_text_that_waits() -> None:
    """Any text gets the slot of the part that has run longest; without a text that waits, no part ends."""
    many = StreamGroup()
    parts = [part(many, i) for i in range(3)]
    scheduler = Scheduler(2, BLOCK_S, STEP_S)
    scheduler.add(parts)
    scheduler.admit()
    assert scheduler.part_to_end() is None  # what waits is of the same group
    single = sequence()
    scheduler.add([single])
    slot = scheduler.part_to_end()
    assert slot is not None
    assert scheduler.running[slot] is parts[0]
    scheduler.release(slot)
    assert scheduler.part_to_end() is None  # a slot is free
    assert scheduler.admit() == [(slot, single)]
    scheduler.add([sequence()])
    slot = scheduler.part_to_end()
    assert slot is not None
    assert scheduler.running[slot] is parts[1]


def test_parts_end_until_groups_have_the_same_number() -> None:
    """Not one more: what is taken from one group would go back at once."""
    many, other = StreamGroup(), StreamGroup()
    scheduler = Scheduler(5, BLOCK_S, STEP_S)
    scheduler.add([part(many, i) for i in range(8)])
    scheduler.admit()
    waiting = [part(other, i) for i in range(5)]
    scheduler.add(waiting)
    admitted = []
    while (slot := scheduler.part_to_end()) is not None:
        scheduler.release(slot)
        admitted += [s for _, s in scheduler.admit()]
    assert admitted == waiting[:2]


@pytest.mark.parametrize("has_output", [False, True])
def test_only_a_part_that_has_generated_ends_early(has_output: bool) -> None:
    """A text does not, nor a part that has just been admitted: each runs a block at least."""
    group = StreamGroup()
    scheduler = Scheduler(2, BLOCK_S, STEP_S)
    scheduler.add([sequence(), part(group, 0, has_output=has_output)])
    scheduler.admit()
    scheduler.add([sequence()])
    slot = scheduler.part_to_end()
    assert (slot is not None and scheduler.running[slot].request.is_part) == has_output


def test_a_scored_row_reports_each_id_of_its_prompt() -> None:
    """Beside rows that generate, for which nothing is scored; also where the block ends inside the text."""
    ids = np.arange(30, dtype=np.int32)
    scored = Sequence(SequenceRequest(ids, 0, 0, SamplingParams(), 1, is_scored=True), 0.0)
    made = block(scored, sequence())
    assert made.score_ids is not None
    k = len(made.forced_ids)
    assert made.score_ids[:, 0].tolist() == list(range(1, k + 1))
    assert set(made.score_ids[:, 1]) == {NO_SCORE}
    assert block(sequence()).score_ids is None
