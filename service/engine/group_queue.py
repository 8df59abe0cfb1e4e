"""Many sequences of one request: as many as have room are in the engine, the others wait here and follow as those end.

So a request for many texts is not refused because there are many, and leaves places to other requests.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable

from service.engine.engine import Engine
from service.engine.stream import End, Failed, Item, Stream
from service.errors import QueueFull

_RETRY_S = 0.05
"""While none of the group's sequences is in the engine, it tries this often to submit one."""


class GroupQueue:
    """Submits the sequences of one request, and reads all of them; `close` must be called at the end."""

    def __init__(self, engine: Engine, submit: Callable[[int, Stream], object], indices: Iterable[int]) -> None:
        """Submit the first sequence.

        Args:
            engine: Runs the sequences.
            submit: Submits the sequence with this index to the engine, on this stream. An exception of it is passed on,
                but QueueFull only for the first sequence.
            indices: Of the sequences, in the order in which they are submitted.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: The engine is stopping.
        """
        self._engine = engine
        self._submit = submit
        self._waiting = deque(indices)
        self._n_running = 0
        self._streams = engine.open_group()
        try:
            self._submit_next()
        except BaseException:
            self.close()
            raise

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return not self._waiting and not self._n_running

    def add_next(self, indices: Iterable[int]) -> None:
        """Add sequences, which are submitted before those that wait already."""
        self._waiting.extendleft(reversed(list(indices)))

    def get(self, timeout_s: float) -> tuple[int, Item] | None:
        """Submit what has room; return the next item of any sequence and its index, or None if none came in time."""
        with contextlib.suppress(QueueFull):  # other requests have every place
            while self._waiting and self._engine.room_for_group(self._n_running):
                self._submit_next()
        received = self._streams.get(timeout_s if self._n_running else min(timeout_s, _RETRY_S))
        if received is not None and isinstance(received[1], End | Failed):
            self._n_running -= 1
        return received

    def close(self) -> None:
        """End every sequence. Idempotent."""
        self._waiting.clear()
        self._engine.close_group(self._streams)

    def _submit_next(self) -> None:
        index = self._waiting[0]
        self._submit(index, self._streams.stream(index))
        self._waiting.popleft()
        self._n_running += 1
