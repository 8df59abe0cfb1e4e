"""Child processes: start them, wait for what happens, stop them all.

Signals, also those of ended children, are read from a pipe where the launcher waits, never handled between two lines of
other code. The kernel's signal handler writes that pipe itself (`signal.set_wakeup_fd`), so that a signal just before a
blocking call is not lost, as it would be with a handler that Python runs after the call.

Each child leads a session of its own, so that Ctrl-C reaches the launcher alone, which stops the children in the right
order. Whatever way the launcher ends, the reaper ends the rest (service/launcher/reaper.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Self

from service.launcher import reaper
from service.launcher.child import command_line

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_POLL_S = 0.02


class StopRequested(Exception):
    """Raised where the launcher waits, after a signal that asks it to stop."""

    def __init__(self, number: int) -> None:
        """Keep the number of the signal."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class ChildEnded(Exception):
    """Raised where the launcher waits for something of a child that has ended instead."""


@dataclass(slots=True, eq=False)
class Child:
    """A child process.

    Attributes:
        name: What the terminal calls it.
        command: The program and its arguments.
        quick_signal: The signal that ends it without delay; SIGTERM ends it after its work.
    """

    name: str
    command: Sequence[str]
    quick_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] = field(init=False)
    on_end: Callable[[int], None] = field(init=False)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs.

        The first call after its end takes its process id back from the reaper, and only then from the system, which may
        give the id to another process at once.
        """
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.on_end(self.process.pid)
            self.process.wait()
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the child has ended."""
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def kill_group(self) -> None:
        """Kill the child and the processes of its group, unless the child has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Supervisor:
    """Starts children and waits for them; a context manager that leaves no child running."""

    def __init__(self, data_folder: Path) -> None:
        """Prepare; nothing is started yet.

        Args:
            data_folder: The folder whose lock all children share.
        """
        self._data_folder = data_folder
        self._children: list[Child] = []
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Catch the signals and start the reaper."""
        self._signals, written = os.pipe()
        os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            # nohup ignores SIGHUP on purpose; a shell that starts a job in the background ignores SIGINT by custom.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _ignore)
        signal.signal(signal.SIGCHLD, _ignore)
        command = [sys.executable, "-m", "service.launcher.reaper", str(self._data_folder)]
        self._reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._reaper.stdin is not None
        self._pipe: IO[bytes] = self._reaper.stdin
        return self

    def __exit__(self, *error: object) -> None:
        """Stop all children, then wait until the reaper has ended what they left."""
        self.stop(self._children)
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._reaper.wait()

    def share_lock(self, descriptor: int) -> None:
        """Have every child inherit the lock of the data folder from now on."""
        self._lock = descriptor

    def remove_at_end(self, folder: Path) -> None:
        """Have a temporary folder removed after the last child has ended, however this process ends."""
        self._tell_reaper(reaper.temporary_folder(folder))

    def start(self, child: Child) -> Child:
        """Start a child, or start it again after it has ended."""
        assert self._lock is not None
        if child not in self._children:
            self._children.append(child)
        child.on_end = self._deregister
        pipe = self._pipe.fileno()
        command = command_line(child.command, parent=os.getpid(), pipe=pipe, stop_signal=child.quick_signal)
        child.process = subprocess.Popen(command, pass_fds=(pipe, self._lock), start_new_session=True)
        return child

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for a signal or the end of a child, or until the timeout.

        Raises:
            StopRequested: A signal asks to stop.
        """
        number = self._next_signal(timeout_s)
        if number is not None and number != signal.SIGCHLD:
            raise StopRequested(number)

    def wait_until(self, condition: Callable[[], bool], limit_s: float, child: Child | None = None) -> bool:
        """Wait until a condition holds.

        Args:
            condition: What is waited for; it is called often.
            limit_s: The longest time to wait.
            child: The child that makes it true.

        Returns:
            False when it still does not hold after `limit_s`.

        Raises:
            StopRequested: A signal asks to stop.
            ChildEnded: The child has ended, so that the condition cannot become true.
        """
        deadline = time.monotonic() + limit_s
        while not condition():
            if child is not None and (status := child.poll()) is not None:
                raise ChildEnded(f"{child.name} ended with status {status}")
            if time.monotonic() > deadline:
                return False
            self.wait(_POLL_S)
        return True

    def pause(self, seconds: float) -> None:
        """Wait for some time.

        Raises:
            StopRequested: A signal asks to stop.
        """
        self.wait_until(lambda: False, seconds)

    def stop(self, children: Sequence[Child], limit_s: float = math.inf) -> None:
        """End some children and wait until they have.

        They end after their work. A further signal to this process is less patient: the second ends them without
        delay, the third kills them.

        Args:
            children: The children; one that has ended already is left out.
            limit_s: After so long they are killed. Without a limit, they have limits of their own.
        """
        running = [child for child in children if child.poll() is None]
        for child in running:
            child.send(signal.SIGTERM)
        signals, deadline = 0, time.monotonic() + limit_s
        while any(child.poll() is None for child in running):
            left_s = deadline - time.monotonic()
            number = self._next_signal(max(0.0, left_s) if left_s < math.inf else None)
            if number == signal.SIGCHLD:
                continue
            signals += 1
            for child in running:
                child.send(child.quick_signal) if number is not None and signals == 1 else child.kill_group()
        self._children = [child for child in self._children if child not in children]

    def _next_signal(self, timeout_s: float | None) -> int | None:
        """Wait for a signal and return its number, or None after the timeout."""
        is_readable, _, _ = select.select([self._signals], [], [], timeout_s)
        number = os.read(self._signals, 1)[0] if is_readable else None
        if number == signal.SIGCHLD:
            for child in self._children:
                child.poll()  # takes the ids of ended children back
        return number

    def _deregister(self, pid: int) -> None:
        self._tell_reaper(reaper.deregistration(pid))

    def _tell_reaper(self, line: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._pipe.write(line)
            self._pipe.flush()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the number is in the pipe already. Unlike SIG_IGN this is not inherited by children."""
