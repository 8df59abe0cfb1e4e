"""The items that the engine's thread passes to a request's thread: chunks of text, then one last item.

The engine never waits for a reader. The length of the text bounds how many chunks can be queued. A reader that leaves
calls `close`; the engine notices at its next block, frees the slot and puts the End.
"""

from __future__ import annotations

import queue
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.network.state import HiddenState
from service.errors import ServiceError

FinishReason = Literal["length", "stop", "cancelled", "timeout"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The characters of one block that may be sent."""

    text: str
    position: int  # of the session, after this text
    logprobs: NDArray[np.float32]  # (n,) of the characters, natural, at temperature 1
    snapshot: HiddenState | None = None  # the state at exactly this position, if a snapshot was due
    token_logprobs: list[dict[str, Any]] | None = None  # one per character, if requested; the engine makes none


@dataclass(frozen=True, slots=True)
class End:
    """The sequence is finished.

    `state` has consumed exactly the text that was sent; it is None if the sequence ended before its prompt was read.
    """

    finish_reason: FinishReason
    state: HiddenState | None
    mask_bits: float | None = None  # what the masks of a constrained text removed of its probability


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence cannot continue: the worker shuts down, or the engine met a bug."""

    error: ServiceError


@dataclass(frozen=True, slots=True)
class StateCapture:
    """The state at one of the positions that the request asked to capture."""

    key: str  # as given in SequenceRequest.captures
    state: HiddenState


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of a text that was only read."""

    logprobs: NDArray[np.float32]  # (n,) natural, of each id of the prompt


Item = StateCapture | Chunk | Scored | End | Failed


class Stream:
    """A one-way queue with an idempotent `close`. The engine's thread puts, one reader gets."""

    group: StreamGroup | None = None
    """The group that it is read with, if any."""
    needed_chars: int | None = None
    """How many characters the reader needs; None: all. It may change while they are generated."""

    def __init__(self) -> None:
        """Create an empty stream."""
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the reader has left."""
        return self._closed

    def put(self, item: Item) -> None:
        """Append an item; never blocks."""
        self._items.put(item)

    def get(self, timeout_s: float) -> Item | None:
        """Return the next item, or None if none came in time. Nothing follows an End or a Failed."""
        try:
            return self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Leave: the engine ends the sequence at its next block."""
        self._closed = True


class StreamGroup:
    """The streams of one request, read together: their items come in the order in which the engine put them.

    The sequences of a group take turns with others for free slots, see Scheduler.admit. Engine.open_group creates one.
    """

    def __init__(self) -> None:
        """Create a group without streams."""
        self._items: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
        self._members: dict[int, _MemberStream] = {}

    def stream(self, index: int) -> Stream:
        """Create a stream whose items come with this index."""
        member = self._members[index] = _MemberStream(self, self._items, index)
        return member

    def remove(self, index: int) -> None:
        """Leave one stream. What it still brings comes with its index."""
        self._members.pop(index).close()

    def get(self, timeout_s: float) -> tuple[int, Item] | None:
        """Return the next item of any stream and the stream's index, or None if none came in time."""
        try:
            return self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Leave all of them; the last ones first, so that no waiting sequence gets the slot of one that ends."""
        for member in reversed(self._members.values()):
            member.close()


class _MemberStream(Stream):
    def __init__(self, group: StreamGroup, items: queue.SimpleQueue[tuple[int, Item]], index: int) -> None:
        super().__init__()
        self.group = group
        self._shared = items
        self._index = index

    def put(self, item: Item) -> None:
        self._shared.put((self._index, item))
