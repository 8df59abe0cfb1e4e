"""What was read of files, kept while the files are the same."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class FileCache(Generic[T]):
    """Reads files, each once as long as it does not change. Thread-safe."""

    def __init__(
        self, read: Callable[[Path], T], max_files: int, is_kept: Callable[[T], bool] = lambda _: True
    ) -> None:
        """Begin empty.

        Args:
            read: Reads a file.
            max_files: Those that were used last are kept.
            is_kept: Whether to keep what was read; what is large may be read again.
        """
        self._read = read
        self._is_kept = is_kept
        self._lock = threading.Lock()
        self._cached: LRUCache[Path, tuple[tuple[int, ...], T]] = LRUCache(max_files)

    def get(self, path: Path) -> T:
        """Return what a file holds; raises what reading it raises."""
        identity = file_identity(path)
        with self._lock:
            known = self._cached.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        value = self._read(path)
        if self._is_kept(value):
            with self._lock:
                self._cached[path] = identity, value
        return value


def file_identity(path: Path) -> tuple[int, ...]:
    """Return the inode, times of modification and change, and size of a file; empty if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
