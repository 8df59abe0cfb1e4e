"""The models of a folder by name: each has checkpoints, a promoted.json, a history and a retention of its own."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from model.checkpoints import registry
from model.checkpoints.file_format import CheckpointInfo, read_info
from model.checkpoints.names import DEFAULT, MODELS, is_model_name, store_folder
from model.errors import CheckpointError, StorageError
from service.models.stores.file_cache import FileCache

_MAX_CACHED = 20_000
_N_CLOSE = 5
_SCAN_SHARE = 10
"""All stores are searched for an unknown id at most one tenth of the time, however many requests name one."""
_DELETED = ".deleted"
"""The end of the name of a model's folder while it is removed."""


class ModelStores:
    """Finds models by name and checkpoints by fingerprint. Thread-safe; it keeps the metadata of files it has read."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Use a folder of checkpoints, which need not exist.

        Args:
            root: The folder.
            clock: The time in seconds.
        """
        self.root = root
        self._clock = clock
        self._scanning = threading.Lock()
        self._stores: dict[str, str] = {}  # the name of a model that has a checkpoint, by fingerprint, at the last scan
        self._scan_began, self._next_scan = -math.inf, -math.inf
        self._infos = FileCache(read_info, _MAX_CACHED)

    def folder(self, name: str) -> Path:
        """Return the store of a model, which need not exist."""
        return store_folder(self.root, name)

    def name_of(self, path: Path) -> str:
        """Return the name of the model that a checkpoint file is of."""
        return DEFAULT if path.parent == self.root else path.parent.name

    def exists(self, name: str) -> bool:
        """Whether there is a model of this name; `default` always is one."""
        return is_model_name(name) and (name == DEFAULT or self.folder(name).is_dir())

    def names(self) -> list[str]:
        """Return all names: `default`, then the others in order."""
        try:
            with os.scandir(self.root / MODELS) as entries:
                result = sorted(entry.name for entry in entries if is_model_name(entry.name) and entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            result = []
        return [DEFAULT, *(name for name in result if name != DEFAULT)]

    def close_names(self, name: str) -> list[str]:
        """Return the names that are most similar to one that does not exist."""
        return difflib.get_close_matches(name, self.names(), _N_CLOSE, 0.5)

    def info(self, path: Path) -> CheckpointInfo:
        """Return the metadata of a checkpoint; a file that has not changed is read once.

        Raises:
            CheckpointError: The file cannot be used.
        """
        return self._infos.get(path)

    def find(self, fingerprint: str, first: str = DEFAULT) -> Path | None:
        """Return a checkpoint file of this fingerprint, or None.

        Of a model that is not searched first, a file that was written a moment ago may not be found: ids that are in no
        store do not have all of them searched again and again.

        Args:
            fingerprint: The checkpoint's id.
            first: The model whose store is searched before the others.
        """
        requested_at = self._clock()
        for name in (first, DEFAULT, self._stores.get(fingerprint)):
            path = self.find_in(name, fingerprint) if name is not None else None
            if path is not None:
                return path
        with self._scanning:
            if self._scan_began < requested_at and self._clock() >= self._next_scan:
                self._scan()
        name = self._stores.get(fingerprint)
        return self.find_in(name, fingerprint) if name is not None else None

    def _scan(self) -> None:
        """Read which checkpoints there are."""
        self._scan_began = self._clock()
        stores: dict[str, str] = {}
        for name in self.names():
            for path in registry.checkpoint_paths(self.folder(name)):
                with contextlib.suppress(CheckpointError):
                    stores.setdefault(self.info(path).fingerprint, name)
        self._stores = stores
        now = self._clock()
        self._next_scan = now + _SCAN_SHARE * (now - self._scan_began)

    def find_in(self, name: str, fingerprint: str) -> Path | None:
        """Return the promoted or else the newest checkpoint file of this fingerprint in one store, or None."""
        return registry.find(self.folder(name), fingerprint, self.info)

    def remove(self, name: str) -> bool:
        """Delete a model with all its checkpoints; False if there is none of this name.

        Raises:
            CheckpointError: It is the default model.
            StorageError: The folder cannot be deleted.
        """
        if name == DEFAULT:
            raise CheckpointError("is the model of requests that name none, and cannot be deleted", field=name)
        folder = self.folder(name)
        deleted = folder.with_name(f".{name}.{secrets.token_hex(8)}{_DELETED}")
        try:
            folder.rename(deleted)  # at once, so that nobody sees a part of it
        except FileNotFoundError:
            return False
        except OSError as e:
            raise StorageError(f"cannot be deleted ({e.strerror})", field=name) from e
        shutil.rmtree(deleted, ignore_errors=True)
        return True

    def remove_deleted(self) -> None:
        """Remove what is left of models whose deletion was not finished: its process was killed, or a file stayed."""
        for folder in (self.root / MODELS).glob(f".*{_DELETED}"):
            shutil.rmtree(folder, ignore_errors=True)
