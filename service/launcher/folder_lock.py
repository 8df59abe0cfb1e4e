"""One launcher for each data folder, and no start before the processes of the previous one have ended.

Two locks, both released by the kernel when their holders end, however they end:

    launcher.json     held by the launcher alone; its content says who that is; removed at the end
    .processes.lock   held by the launcher and by every process that it started, through an inherited file descriptor

So a second start sees at once that a launcher is running, and a start after kill -9 of a launcher waits until the last
of its processes is gone: never do two Redis servers write the same files. The standard library only: the reaper
imports this module.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LAUNCHER_FILE = "launcher.json"
PROCESSES_FILE = ".processes.lock"


class AlreadyRunning(Exception):
    """Raised when another launcher, or a process that one left behind, uses the data folder."""


@contextmanager
def launcher_lock(folder: Path, url: str) -> Iterator[None]:
    """Be the only launcher of a data folder.

    Args:
        folder: The data folder; it must exist.
        url: The address of the service, for whoever tries to start a second launcher.

    Raises:
        AlreadyRunning: Another launcher is running; the message has its process id and address.
    """
    path = folder / LAUNCHER_FILE
    descriptor = _lock_file(path)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock_file(path: Path) -> int:
    """Open and lock the launcher's file. It may be removed by its last holder meanwhile: then try the new one."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise AlreadyRunning(_describe(holder, path.parent)) from None
        if _is_same_file(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _describe(holder: bytes, folder: Path) -> str:
    try:
        known = json.loads(holder)
        who = f"process {known['pid']}, {known['url']}"
    except (ValueError, KeyError, TypeError):
        who = "another process that is just starting"
    return f"already running on the data folder {folder.resolve()}: {who}; stop it first, or start in another folder"


@contextmanager
def processes_lock(folder: Path, wait: Callable[[Callable[[], bool]], bool]) -> Iterator[int]:
    """Hold the lock that all processes of a launcher share; wait for those of the previous one.

    Args:
        folder: The data folder.
        wait: Called with a condition; waits for it and returns whether it became true.

    Yields:
        The file descriptor, to be inherited by every process that is started.

    Raises:
        AlreadyRunning: Processes of a previous start are still running.
    """
    descriptor = os.open(folder / PROCESSES_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not wait(lambda: _try_lock(descriptor)):
            raise AlreadyRunning(
                f"processes of a previous start still use the data folder {folder.resolve()}; end them and start again"
            )
        yield descriptor
    finally:
        os.close(descriptor)


def is_free(folder: Path) -> bool:
    """Whether no process of a launcher uses the data folder."""
    try:
        descriptor = os.open(folder / PROCESSES_FILE, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
