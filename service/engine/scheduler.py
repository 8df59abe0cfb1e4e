"""Which sequences run in the next block, and for how many steps. It holds no tensor and runs nothing.

The slots are a fixed table: an admitted sequence takes one, a finished one frees it. First come, first served. Every
running sequence advances in every block, so a long prompt takes one row of the batch, not the batch's time.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

from model.network.penalties import LogitBias, stack_windows
from model.network.sampling import as_batch, random_values
from model.stepper import NO_SCORE, SAMPLE, Block, BlockResult
from model.structured_outputs.masks import Constraints
from service.engine.sequence import Sequence
from service.engine.stream import StreamGroup

MAX_STEPS = 256
MIN_BLOCK_S_PER_ROW = 0.00033
"""No block is shorter, for a first character or by an interrupt: sending a chunk costs a request's thread about a third
of this (bench/serve)."""
TARGET_BLOCK_S_PER_ROW = 0.001
"""A block of many rows takes as long when nobody waits for a first character."""
LEAST_SHARE = 1 / 4
"""A block is planned for at least this share of its usual time, however many models have work."""
MAX_RETRY_AFTER_S = 60
"""A longer estimate is not worth giving: texts end early, and clients leave."""


class Scheduler:
    """The slots, the queue of waiting sequences, and how long a step has been taking."""

    def __init__(self, n_slots: int, block_s: float, step_s: float | None = None) -> None:
        """Start empty.

        Args:
            n_slots: The number of slots.
            block_s: The time that a block should take.
            step_s: The time of a step, until blocks have been measured; None: a guess.
        """
        self.running: dict[int, Sequence] = {}  # slot -> sequence
        self.waiting: deque[Sequence] = deque()
        self._free_slots = list(range(n_slots - 1, -1, -1))
        self._block_s = block_s
        self.step_s = block_s / 16 if step_s is None else step_s  # the time of a step, as the last blocks took it
        self._steps_per_s = 0.0  # recent, all sequences together; 0 until a block has been measured

    @property
    def is_idle(self) -> bool:
        """Whether no sequence runs or waits."""
        return not self.running and not self.waiting

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Append sequences to the queue."""
        self.waiting.extend(sequences)

    def admit(self) -> list[tuple[int, Sequence]]:
        """Give the free slots to the sequences that have waited longest, and return who got which.

        Requests with many sequences take turns with others: a free slot goes to the request that has the fewest.
        """
        admitted: list[tuple[int, Sequence]] = []
        if not (self._free_slots and self.waiting):
            return admitted
        n_running = self._slots_of_groups()
        while self._free_slots and self.waiting:
            at, fewest = 0, None
            for i, sequence in enumerate(self.waiting):
                group = sequence.stream.group
                count = n_running[group] if group is not None else 0
                if fewest is None or count < fewest:
                    at, fewest = i, count
                if not count:
                    break
            slot, sequence = self._free_slots.pop(), self.waiting[at]
            del self.waiting[at]
            if sequence.stream.group is not None:
                n_running[sequence.stream.group] += 1
            self.running[slot] = sequence
            admitted.append((slot, sequence))
        return admitted

    def part_to_end(self) -> int | None:
        """Return the slot of a part that should end now, because another request that has fewer slots waits for one.

        A part is continued from where it ends, so it can end after every block: a text never waits for a long list. It
        is the longest running part of the group that has the most slots. A group gives none to another one that has as
        many, or one less.
        """
        if self._free_slots or not self.waiting:
            return None
        n_running = self._slots_of_groups()
        parts = [(slot, s) for slot, s in self.running.items() if s.request.is_part and s.has_output]
        slot, part = max(parts, key=lambda item: n_running[item[1].stream.group], default=(-1, None))
        if part is None:
            return None
        groups = {s.stream.group for s in self.waiting}
        fewest = -1 if None in groups else min(n_running[group] for group in groups)
        return slot if n_running[part.stream.group] > fewest + 1 else None

    def _slots_of_groups(self) -> Counter[StreamGroup | None]:
        return Counter(s.stream.group for s in self.running.values() if s.stream.group is not None)

    def release(self, slot: int) -> Sequence:
        """Free a slot, and return the sequence that had it."""
        sequence = self.running.pop(slot)
        self._free_slots.append(slot)
        return sequence

    def drop_waiting(self, now: float) -> list[Sequence]:
        """Remove the sequences from the queue whose reader has left or whose deadline has passed, and return them."""
        dropped = [s for s in self.waiting if s.stream.closed or s.is_past_deadline(now)]
        if dropped:
            gone = set(map(id, dropped))
            self.waiting = deque(s for s in self.waiting if id(s) not in gone)
        return dropped

    @property
    def block_s(self) -> float:
        """The time that a block of all running sequences should take: with many of them it is longer."""
        return max(self._block_s, TARGET_BLOCK_S_PER_ROW * len(self.running))

    def next_block(self, share: float = 1.0) -> Block:
        """Return the next block: every running sequence, for the block's steps or for what it has left.

        A request that comes while it runs may end it, once it has taken its least time.

        Args:
            share: The part of its usual time that the block should take.
        """
        rows = list(self.running.items())
        limit = self._block_steps(share)
        steps = np.array([s.steps_within(limit) for _, s in rows], dtype=np.int32)
        k = int(steps.max())
        forced_ids = np.full((k, len(rows)), SAMPLE, dtype=np.int32)
        score_ids = (
            np.full((k, len(rows)), NO_SCORE, dtype=np.int32) if any(s.request.is_scored for _, s in rows) else None
        )
        for b, (_, s) in enumerate(rows):
            fed = s.to_feed[:k]
            forced_ids[: len(fed), b] = fed
            if score_ids is not None and s.request.is_scored:
                following = s.to_feed[1 : steps[b] + 1]
                score_ids[: len(following), b] = following
        return Block(
            slots=np.array([slot for slot, _ in rows], dtype=np.int32),
            steps=steps,
            least_steps=self._steps_in(MIN_BLOCK_S_PER_ROW * len(rows)),
            forced_ids=forced_ids,
            random_values=random_values([s.request.seed for _, s in rows], [s.position for _, s in rows], k),
            sampling=as_batch(s.request.sampling for _, s in rows),
            score_ids=score_ids,
            windows=stack_windows([s.window for _, s in rows]),
            logit_bias=LogitBias.of([s.request.logit_bias for _, s in rows]),
            constraints=Constraints.of([s.constraint(n) for (_, s), n in zip(rows, steps.tolist(), strict=True)]),
        )

    def record(self, result: BlockResult, seconds: float, waited_s: float = 0.0) -> None:
        """Learn from a block how long a step takes; the next blocks are sized by it.

        Args:
            result: Of the block.
            seconds: Its time.
            waited_s: The time for which it waited for cores that other models used.
        """
        self.step_s += 0.3 * (seconds / result.steps_run - self.step_s)
        steps_per_s = float(result.steps.sum()) / (seconds + waited_s)
        self._steps_per_s += 0.1 * (steps_per_s - self._steps_per_s) if self._steps_per_s else steps_per_s

    def estimate_wait_s(self, queued_steps: int) -> int:
        """Whole seconds until the queue is worked off at the measured speed: 1 to MAX_RETRY_AFTER_S."""
        if not self._steps_per_s:
            return 1
        return max(1, min(MAX_RETRY_AFTER_S, math.ceil(queued_steps / self._steps_per_s)))

    def _block_steps(self, share: float) -> int:
        """Steps that take this share of block_s; fewer if that brings some sequence's first character sooner.

        Sending a chunk costs a request's thread about the same with one character as with twenty. So with many rows a
        block is longer, and it is never cut below a multiple of what sending its chunks costs.
        """
        usual = self._steps_in(max(self._block_s * max(share, LEAST_SHARE), TARGET_BLOCK_S_PER_ROW * len(self.running)))
        new = [len(s.to_feed) for s in self.running.values() if not s.has_output and not s.request.is_part]
        to_first_char = min(new, default=usual)
        if to_first_char >= usual:
            return usual
        return min(usual, max(to_first_char, self._steps_in(MIN_BLOCK_S_PER_ROW * len(self.running))))

    def _steps_in(self, seconds: float) -> int:
        return max(1, min(MAX_STEPS, int(seconds / self.step_s)))
