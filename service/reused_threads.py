"""Threads that are used again: where models come and go, no thread is made for each one's engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

MAX_IDLE = 8
"""So many threads at most wait for something to run."""
_Mailbox = SimpleQueue[tuple[Callable[[], None], threading.Event]]


class ReusedThreads:
    """Runs functions in threads that do not keep the process alive, and are used again. Thread-safe."""

    def __init__(self, name: str) -> None:
        """Begin without a thread.

        Args:
            name: Of the threads.
        """
        self._name = name
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._idle: list[_Mailbox] = []

    def start(self, work: Callable[[], None]) -> threading.Event:
        """Run a function, and return the event that is set when it has ended."""
        ended = threading.Event()
        with self._lock:
            if self._pid != os.getpid():  # after a fork there are no threads
                self._pid, self._idle = os.getpid(), []
            mailbox = self._idle.pop() if self._idle else None
        if mailbox is None:
            mailbox = SimpleQueue()
            threading.Thread(target=self._run, args=(mailbox,), name=self._name, daemon=True).start()
        mailbox.put((work, ended))
        return ended

    def _run(self, mailbox: _Mailbox) -> None:
        is_kept = True
        while is_kept:
            work, ended = mailbox.get()
            try:
                work()
            except BaseException:
                ended.set()
                raise
            del work  # it may be all that refers to something large
            with self._lock:
                is_kept = len(self._idle) < MAX_IDLE
                if is_kept:
                    self._idle.append(mailbox)
            ended.set()
