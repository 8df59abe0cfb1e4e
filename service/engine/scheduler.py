"""Which texts run in the next block, and for how many steps. It holds no tensor and does no work.

Slots are a fixed table: joining takes a slot, leaving frees it. First come, first served: every running text advances
in every block, so a long prompt takes a row, not a turn: of a block's work it is one row's part, however long it is.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from model.network.sampling import as_batch, random_values
from model.stepper import SAMPLE, Block
from service.engine.sequence import Sequence

MAX_STEPS = 256
HAND_OUT_S = 0.0005
"""Of a block's time for each row, at least; of that, a request's thread takes about a third (bench/serve)."""


class Scheduler:
    """Knows the slots, the line, and how long a step has been taking."""

    def __init__(self, n_slots: int, block_s: float) -> None:
        self.running: dict[int, Sequence] = {}  # slot -> sequence
        self.waiting: deque[Sequence] = deque()
        self._free = list(range(n_slots - 1, -1, -1))
        self._block_s = block_s
        self._step_s = block_s / 16  # a guess, until blocks have been timed
        self.chars_per_s = 0.0  # of late, all texts together; 0 until a block has been timed

    @property
    def is_idle(self) -> bool:
        return not self.running and not self.waiting

    def admit(self) -> list[tuple[int, Sequence]]:
        """Give free slots to those who wait longest, and say who got which."""
        admitted = []
        while self._free and self.waiting:
            slot, sequence = self._free.pop(), self.waiting.popleft()
            self.running[slot] = sequence
            admitted.append((slot, sequence))
        return admitted

    def release(self, slot: int) -> None:
        del self.running[slot]
        self._free.append(slot)

    def leave_line(self, now: float) -> list[Sequence]:
        """Take out of the line those whose readers have left, and those whose time is up."""
        gone = [s for s in self.waiting if s.stream.closed or s.is_late(now)]
        if gone:
            leaving = set(map(id, gone))
            self.waiting = deque(s for s in self.waiting if id(s) not in leaving)
        return gone

    def block(self) -> Block:
        """The next block: every running row, K steps or what the row has left."""
        rows = list(self.running.items())
        limit = self._k()
        steps = np.array([s.steps_within(limit) for _, s in rows], dtype=np.int32)
        k = int(steps.max())
        forced_ids = np.full((k, len(rows)), SAMPLE, dtype=np.int32)
        for b, (_, s) in enumerate(rows):
            fed = s.to_feed[:k]
            forced_ids[: len(fed), b] = fed
        return Block(
            slots=np.array([slot for slot, _ in rows], dtype=np.int32),
            steps=steps,
            forced_ids=forced_ids,
            random_values=random_values([s.seed for _, s in rows], [s.position for _, s in rows], k),
            sampling=as_batch([s.params for _, s in rows]),
        )

    def timed(self, block: Block, seconds: float) -> None:
        """A block took so long; the next ones are sized by it."""
        self._step_s += 0.3 * (seconds / len(block.forced_ids) - self._step_s)
        pace = float(block.steps.sum()) / seconds
        self.chars_per_s += 0.1 * (pace - self.chars_per_s) if self.chars_per_s else pace

    def _k(self) -> int:
        """Steps that take about block_s; fewer when that brings somebody's first character sooner.

        Handing a piece out costs its request's thread about as much with one character as with twenty, so with many
        rows a block is longer, and is not cut short below what that costs.
        """
        handing_out_s = HAND_OUT_S * len(self.running)
        usual = self._steps_in(max(self._block_s, 2 * handing_out_s))
        first = min((len(s.to_feed) for s in self.running.values() if not s.wrote), default=usual)
        if first >= usual:
            return usual
        return min(usual, max(first, self._steps_in(max(self._block_s / 4, handing_out_s))))

    def _steps_in(self, seconds: float) -> int:
        return max(1, min(MAX_STEPS, int(seconds / self._step_s)))
