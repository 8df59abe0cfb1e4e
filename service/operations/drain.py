"""How a worker leaves: told to stop, it lets its texts end, and sends away those that take too long.

The order, from SIGTERM on:

    at once          /readyz answers 503 "draining", so that a proxy looks for others; requests are still taken
    DRAIN_NOTICE_S   new requests get 503 "draining"; texts that run go on
    no text is left, or DRAIN_S later: texts that still run end with the error "draining", and the process ends

A client that was sent away asks another worker for its stream after the last position it has: the text is the same.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType

from service.models.manager import ModelManager

log = logging.getLogger(__name__)
_LOOK_S = 0.05


class Drain:
    """One worker's way out. `begin` may be called in a signal handler, and again."""

    def __init__(self, serving: ModelManager, notice_s: float, limit_s: float) -> None:
        self._serving = serving
        self._notice_s = notice_s
        self._limit_s = limit_s
        self._asked: SimpleQueue[None] = SimpleQueue()  # its put, unlike an Event's set, may interrupt itself
        self.is_leaving = False

    def on_sigterm(self, leave: Callable[[], object]) -> None:
        """From now on SIGTERM begins the drain, and `leave` is called at its end, on a thread of the drain's."""
        threading.Thread(target=self._wait, args=(leave,), name="drain", daemon=True).start()
        signal.signal(signal.SIGTERM, self.begin)
        signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn has it: requests that run are not disturbed

    def begin(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        self.is_leaving = True
        self._asked.put(None)

    def run(self) -> None:
        """The whole of it, on the caller's thread."""
        self.is_leaving = True
        time.sleep(self._notice_s)
        self._serving.close()
        until = time.monotonic() + self._limit_s
        while self._serving.in_flight and time.monotonic() < until:
            time.sleep(_LOOK_S)
        if left := self._serving.in_flight:
            log.warning("%d texts have not ended in time; their clients can go on elsewhere", left)
        self._serving.stop()

    def now(self) -> None:
        """For who does not want to wait: every text ends where it is."""
        self.is_leaving = True
        self._serving.close()
        self._serving.stop()

    def _wait(self, leave: Callable[[], object]) -> None:
        self._asked.get()
        try:
            self.run()
        finally:
            leave()
