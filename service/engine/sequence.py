"""One text on its way through the engine: what it still has to read, what it may still write, where it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from service.engine.stop_strings import StopScanner
from service.engine.stream import Stream

Values = NDArray[np.floating]


@dataclass(slots=True, eq=False)
class ReplayPoint:
    """A state to replay from, kept for texts with stop strings: where it stands, nothing was held back."""

    values: Values | None  # (S, L, H); None is the zero state
    position: int
    ids: list[int]  # its next_input id, then all that followed


@dataclass(slots=True, eq=False)
class Sequence:
    """Its row in the next block is: feed `to_feed`, then what was sampled, until `remaining` new characters are drawn.

    `position` counts the text's characters up to and including to_feed[0], so step k of the next block produces the
    character at index position + k, with that position's random number.
    """

    to_feed: NDArray[np.int32]  # (n,) n >= 1: the next_input id, then the prompt
    position: int
    remaining: int
    params: SamplingParams
    seed: int
    values: Values | None  # (S, L, H) the state to begin with; None for a text not begun
    stops: StopScanner = field(default_factory=lambda: StopScanner(()))
    snapshot_every_s: float | None = None
    deadline: float | None = None  # time.monotonic() at which the text ends where it is
    stream: Stream = field(default_factory=Stream)
    marks: dict[int, str] = field(default_factory=dict)  # positions, in order, whose states are wanted, and their names
    reused: int = 0  # characters of the prompt that `values` has read already, of those that were asked to be read
    submitted: float = field(default_factory=time.monotonic)
    wrote_at: float | None = field(init=False, default=None)  # when its last characters were handed out
    snapshot_at: float = field(init=False, default=0.0)
    replay_point: ReplayPoint | None = field(init=False, default=None)
    wrote: bool = field(init=False, default=False)  # whether a first character has been drawn
    held_logprobs: list[float] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.stops.any:
            self.set_replay_point(self.values)

    @property
    def steps_left(self) -> int:
        """Steps until the last character is drawn; that one is not fed: it stays next_input."""
        return len(self.to_feed) - 1 + self.remaining

    @property
    def is_reading(self) -> bool:
        """Whether a part of the prompt has not been read; its last character stays next_input until a step needs it."""
        return len(self.to_feed) > 1

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def steps_within(self, limit: int) -> int:
        """Steps in the next block: at most `limit`, and not past a mark."""
        to_mark = next(iter(self.marks)) - self.position if self.marks else limit
        return min(limit, self.steps_left, to_mark)

    def advance(self, produced: NDArray[np.int32]) -> NDArray[np.int32]:
        """Take a block's ids (n_steps,), and return those that are new text rather than prompt."""
        steps, fed = len(produced), len(self.to_feed)
        if self.replay_point is not None:
            self.replay_point.ids.extend(produced.tolist())
        new = produced[fed - 1 :] if steps >= fed else produced[:0]
        self.to_feed = self.to_feed[steps:] if fed > steps else produced[-1:]
        self.position += steps
        self.remaining -= len(new)
        self.wrote = self.wrote or len(new) > 0
        return new

    def set_replay_point(self, values: Values | None) -> None:
        """Stand on this state: a stop string that is met later leads back here."""
        self.replay_point = ReplayPoint(values, self.position, [int(self.to_feed[0])])

    def snapshot_is_due(self, now: float) -> bool:
        if self.snapshot_every_s is None or self.stops.held:
            return False
        self.snapshot_at = self.snapshot_at or self.submitted + self.snapshot_every_s
        if now < self.snapshot_at:
            return False
        self.snapshot_at = now + self.snapshot_every_s
        return True
