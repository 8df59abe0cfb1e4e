"""What the loads of a model need of its checkpoint's file beside the weights, kept while the file is the same."""

from __future__ import annotations

import threading
from pathlib import Path

from cachetools import LRUCache

from model.checkpoints import file_format
from model.checkpoints.file_format import Checkpoint, CheckpointInfo
from service.models.stores.model_stores import file_identity

MAX_CACHED = 2000
"""Checkpoints, of some kilobytes each."""


class MetadataCache:
    """Reads checkpoints without their weights, each once. Thread-safe."""

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()
        self._cached: LRUCache[Path, tuple[tuple[int, ...], tuple[Checkpoint, CheckpointInfo]]] = LRUCache(MAX_CACHED)

    def read(self, path: Path) -> tuple[Checkpoint, CheckpointInfo]:
        """Return what `load_without_weights` does; that of a list, which may be long, is read each time.

        Raises:
            CheckpointError: The file cannot be used.
        """
        identity = file_identity(path)
        with self._lock:
            known = self._cached.get(path)
        if known is not None and known[0] == identity:
            return known[1]
        read = file_format.load_without_weights(path)
        if read[0].items is None:
            with self._lock:
                self._cached[path] = identity, read
        return read
