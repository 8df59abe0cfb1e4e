"""What one iteration of the engine's loop did, in plain values, for metrics. The engine knows no metrics library."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class IterationStats:
    """One iteration of the engine's loop. Spans are in seconds."""

    running: int = 0  # sequences that have a slot, at its end
    waiting: int = 0  # sequences in the queue, at its end
    block_s: float | None = None  # the stepper's time for the block; None if nothing ran
    prompt_chars: int = 0  # read
    reused_chars: int = 0  # of the prompts of admitted sequences, already contained in a stored state
    generated_chars: int = 0  # sent
    queue_times_s: list[float] = field(default_factory=list)  # of admitted sequences: from submission to the slot
    first_chunk_times_s: list[float] = field(default_factory=list)  # from submission to the first chunk
    chunk_gaps: Counter[tuple[float, int]] = field(default_factory=Counter)  # (span since the last chunk, its chars)
    finish_reasons: list[str] = field(default_factory=list)  # of the sequences that ended; "failed" for an error


class Observer(Protocol):
    """Receives events of one engine."""

    def on_iteration(self, stats: IterationStats) -> None:
        """Handle one iteration. The engine's thread calls it: it must do no I/O and take microseconds."""
        ...

    def on_finished(self, reason: str) -> None:
        """Handle the end of a request of many parts, such as one for items, which no iteration has. For any thread."""
        ...

    def on_stopped(self) -> None:
        """Handle the end of the engine: its slots no longer exist. The engine's thread calls it."""
        ...


class NullObserver:
    """An Observer that ignores everything."""

    def on_iteration(self, stats: IterationStats) -> None:
        """Do nothing."""

    def on_finished(self, reason: str) -> None:
        """Do nothing."""

    def on_stopped(self) -> None:
        """Do nothing."""
