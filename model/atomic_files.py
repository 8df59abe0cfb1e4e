"""Atomic replacement of files, and the lock of a folder: every writer of the product uses these two.

Own code, because the candidates do less: python-atomicwrites is no longer maintained, and filelock leaves lock files
behind, where `flock` on the folder itself leaves nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from model.errors import StorageError

_TEMPORARY_NAME = r"\..+\.[0-9a-f]{16}\.tmp"


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name complete and synced to disk, or not at all.

    The folder is created when it is missing. Until the block ends without an error, `path` is what it was before. The
    temporary file beside it has a random name: a process id is not unique, because containers that share the folder
    number their processes each from 1. It is locked while it is written, so that `remove_abandoned` knows it from one
    whose writer was killed.

    Args:
        path: The file to create or replace.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        StorageError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        problem = f"cannot be written ({error.strerror}); the previous file is unchanged"
        raise StorageError(problem, field=str(path)) from error
    finally:
        with suppress(OSError):  # it is gone after a success, and never existed where the folder is none
            temporary.unlink()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a folder, among all processes of this machine; wait until it is free.

    The operating system releases the lock when its process ends, however it ends.

    Raises:
        StorageError: The folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        problem = f"cannot be opened ({error.strerror})"
        raise StorageError(problem, field=str(folder), expected="a folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, unlocked_for_s: float = 60.0) -> list[Path]:
    """Delete the temporary files that killed writers left in a folder and the folders below it.

    Args:
        folder: The folder; nothing happens if there is none.
        unlocked_for_s: The age of a file that may be deleted: a younger one may not be locked yet.

    Returns:
        The files that were deleted.
    """
    removed = []
    for path in folder.rglob(".*.tmp"):
        if not re.fullmatch(_TEMPORARY_NAME, path.name):
            continue
        with suppress(OSError), open(path, "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < unlocked_for_s:
                continue
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an error if its writer lives
            path.unlink()
            removed.append(path)
    return removed


def is_locked(folder: Path) -> bool:
    """Whether another process, or another part of this one, holds the lock of a folder.

    Raises:
        StorageError: The folder cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        problem = f"cannot be opened ({error.strerror})"
        raise StorageError(problem, field=str(folder), expected="a folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
