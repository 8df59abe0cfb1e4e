"""What a turn of the engine's loop did, for whoever counts. The engine fills in plain values; it knows no counter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class Step:
    """One turn of the loop: who came and left, the block, what it read and wrote. Spans in seconds."""

    running: int = 0  # texts with a slot, at its end
    waiting: int = 0  # texts in the line, at its end
    block_s: float | None = None  # that the stepper took; None when nothing ran
    read: int = 0  # characters of prompts
    reused: int = 0  # characters of prompts of those who came, that a stored state spared
    written: int = 0  # characters that were handed out
    queued_s: list[float] = field(default_factory=list)  # of those who came: since they were submitted
    first_s: list[float] = field(default_factory=list)  # of those who got a first character: since they were submitted
    gaps: Counter[tuple[float, int]] = field(default_factory=Counter)  # (since the last, characters now) -> texts
    ended: list[str] = field(default_factory=list)  # why each ended


class Observer(Protocol):
    """Called by one engine; `step` by the engine's thread, the others by any."""

    def step(self, step: Step) -> None:
        """A turn of the loop is over. Must do no I/O and take microseconds."""
        ...

    def refused(self) -> None:
        """A text was refused, for the line is full."""
        ...

    def stopped(self) -> None:
        """The engine has ended: its slots are no more."""
        ...


class NullObserver:
    """Nobody counts."""

    def step(self, step: Step) -> None: ...

    def refused(self) -> None: ...

    def stopped(self) -> None: ...
