"""Draining: a worker process that gets SIGTERM lets running requests finish, then interrupts the rest and exits.

    at once           /readyz answers 503 "draining", so that a proxy selects other workers; requests are still accepted
    DRAIN_NOTICE_S    later new requests get 503 "draining"; running ones continue
    no request runs, or DRAIN_TIMEOUT_S later: running requests end with the error "draining" and the process exits

An interrupted client resumes its stream on another worker after its last position, and gets the same text.
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
_POLL_S = 0.05


class Drain:
    """The shutdown of one worker process."""

    def __init__(
        self,
        models: ModelManager,
        notice_s: float,
        timeout_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare the shutdown.

        Args:
            models: The models whose requests are drained.
            notice_s: Seconds for which requests are still accepted.
            timeout_s: Seconds after that, for running requests to finish.
            sleep: Waits for so many seconds; a test replaces it.
        """
        self._models = models
        self._notice_s = notice_s
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._requested: SimpleQueue[None] = SimpleQueue()  # its put is reentrant, as a signal handler needs
        self.is_draining = False
        self.is_replaced = False  # by another worker process, which accepts the connections that wait

    def on_sigterm(self, exit_process: Callable[[], object]) -> None:
        """Install the SIGTERM handler that begins the drain; a thread of its own calls `exit_process` at the end."""
        threading.Thread(target=self._wait, args=(exit_process,), name="drain", daemon=True).start()
        signal.signal(signal.SIGTERM, self.begin)
        signal.siginterrupt(signal.SIGTERM, False)  # as gunicorn does: system calls of running requests are restarted

    def begin(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        """Begin the drain. May be called in a signal handler, and more than once."""
        self.is_draining, self.is_replaced = True, False
        self._requested.put(None)

    def begin_alone(self) -> None:
        """Begin the drain of a process that cannot go on: its clients resume on others, and it is replaced."""
        self.begin()
        self.is_replaced = True

    def run(self) -> None:
        """Drain on the caller's thread; returns when no request runs."""
        self.is_draining = True
        self._sleep(self._notice_s)
        self._models.close()
        deadline = time.monotonic() + self._timeout_s
        while self._models.in_flight and time.monotonic() < deadline:
            self._sleep(_POLL_S)
        if unfinished := self._models.in_flight:
            log.warning(
                "drain: interrupted %d requests after %g s; clients can resume them on another worker",
                unfinished,
                self._timeout_s,
            )
        self._models.stop()

    def stop_now(self) -> None:
        """Interrupt every request at once."""
        self.is_draining = True
        self._models.close()
        self._models.stop()

    def _wait(self, exit_process: Callable[[], object]) -> None:
        self._requested.get()
        try:
            self.run()
        finally:
            exit_process()
