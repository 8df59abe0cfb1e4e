"""python -m service.launcher.reaper: when the launcher is gone, end what it left behind.

The launcher holds the write end of a pipe, which is this process's standard input. The kernel closes it when the
launcher ends, also by kill -9. Until then each child registers its process id with its stop signal, a line each, and
the launcher takes an id back when it has seen the child end. At the end of the input the reaper signals every
registered process group, waits until all are gone, kills what is left after GRACE_S, and removes the temporary folders.
All are gone when no registered group exists, or when the data folder's lock is free, which every descendant holds: the
first is not seen where nobody reaps orphans, the second not when the next launcher has taken the lock already.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from service.launcher.folder_lock import is_free

GRACE_S = 8.0
_KILLED_S = 10.0  # after SIGKILL the kernel needs a moment
LIMIT_S = GRACE_S + _KILLED_S + 2.0
"""After so long the reaper has ended everything that can be ended."""
_POLL_S = 0.02


def registration(pid: int, stop_signal: signal.Signals) -> bytes:
    """Return the line that registers a child; shorter than PIPE_BUF, so that lines are never mixed."""
    return f"child {pid} {int(stop_signal)}\n".encode()


def deregistration(pid: int) -> bytes:
    """Return the line that takes back a child that has ended: its process id may be used again."""
    return f"ended {pid}\n".encode()


def temporary_folder(path: Path) -> bytes:
    """Return the line that names a folder to be removed at the end."""
    return f"remove {path}\n".encode()


def main() -> None:
    """Collect registrations until the launcher is gone, then end and remove everything registered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # this process must outlive the launcher
    data_folder = Path(sys.argv[1])
    children: dict[int, signal.Signals] = {}
    folders: list[Path] = []
    for line in sys.stdin:
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "child":
            pid, stop_signal = map(int, rest.split())
            children[pid] = signal.Signals(stop_signal)
        elif kind == "ended":
            children.pop(int(rest), None)
        elif kind == "remove":
            folders.append(Path(rest))
    for pid, number in children.items():
        _signal_group(pid, number)

    def are_gone() -> bool:
        return is_free(data_folder) or not any(map(_group_exists, children))

    if not _wait(are_gone, GRACE_S):
        for pid in children:
            _signal_group(pid, signal.SIGKILL)
        _wait(are_gone, _KILLED_S)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a child and its descendants: each child leads a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _group_exists(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's: the process id is used again
        return False
    return True


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    """Wait until a condition holds. Return False when it still does not after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


if __name__ == "__main__":
    main()
