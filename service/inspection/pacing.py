"""Inspections yield to generation: they compute one part at a time, and pause after each while texts are generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.engine.scoring import BUSY_SHARE

MAX_PAUSE_S = 1.0


class Pacer:
    """Bounds the share of time in which inspections compute."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Create a pacer for all inspections of a process.

        Args:
            clock: The time in seconds.
            pause: Waits for so many seconds.
        """
        self._clock = clock
        self._pause = pause
        self._lock = threading.Lock()

    @contextmanager
    def part(self, is_generating: Callable[[], bool]) -> Iterator[None]:
        """Compute a part of an inspection: alone, and followed by a pause if texts are generated at its end."""
        with self._lock:
            started = self._clock()
            yield
            if is_generating():
                elapsed_s = self._clock() - started
                self._pause(min(elapsed_s * (1 / BUSY_SHARE - 1), MAX_PAUSE_S))
