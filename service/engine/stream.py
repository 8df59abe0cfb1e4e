"""What the engine's thread hands to a request's thread: pieces of text, then one last item.

The engine never waits for a reader: a piece is put and forgotten, and a text's length bounds what can pile up. A
reader that leaves calls `close`; the engine sees it at its next block, frees the slot and puts the End.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any, Literal

from model.network.state import HiddenState

FinishReason = Literal["length", "stop", "cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The characters of one block."""

    text: str
    position: int  # of the session, after this text
    logprobs: list[float]  # one a character, natural, at temperature 1
    snapshot: HiddenState | None = None  # at exactly this position, when one was due
    looks: list[dict[str, Any]] | None = None  # one a character, when they were asked for; the engine makes none


@dataclass(frozen=True, slots=True)
class End:
    """A text is done. `state` is that of exactly the text that was put; None when its prompt was not all read."""

    finish_reason: FinishReason
    state: HiddenState | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A text cannot go on: the worker stops, or the engine met an error of ours."""

    error: Exception


@dataclass(frozen=True, slots=True)
class StateCapture:
    """The state at a place of the prompt that was asked for."""

    key: str  # empty where it is only to be looked at, not kept
    state: HiddenState


Item = StateCapture | Chunk | End | Failed


class Stream:
    """A one-way pipe with an idempotent `close`; the engine's thread puts, one reader gets."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.closed = False

    def put(self, item: Item) -> None:
        self._items.put(item)

    def get(self, timeout_s: float) -> Item | None:
        """The next item, or None when none came in time. After an End or a Failed, nothing follows."""
        try:
            return self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """The reader wants no more: the text ends at the next block."""
        self.closed = True
