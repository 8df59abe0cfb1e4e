"""Watches which checkpoint is promoted, and replaces the served model when that changes.

One thread waits for a notification or for POLL_INTERVAL_S, then reads promoted.json. A new model is loaded, tested and
warmed up while the old one serves; then it is swapped in. A checkpoint that cannot be used is refused, with the
reason, and the model that was served before stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model.checkpoints import file_format, registry
from model.checkpoints.registry import PROMOTED
from model.errors import CheckpointError
from service.errors import ModelConflict
from service.models.loaded_model import LoadedModel
from service.models.manager import ModelManager
from service.models.stores.file_cache import file_identity

log = logging.getLogger(__name__)
POLL_INTERVAL_S = 0.5
_MAX_FALLBACKS = 19
_FileVersion = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RefusedCheckpoint:
    """A promoted checkpoint that is not served, and why."""

    name: str
    reason: str

    def as_dict(self) -> dict[str, str]:
        """Return it as /readyz shows it."""
        return {"name": self.name, "reason": self.reason}


class SwapObserver(Protocol):
    """Counts what the watcher does. service.operations.metrics implements it, one level above."""

    def count_model_swap(self) -> None:
        """Count a new model that is served."""

    def count_refused_swap(self) -> None:
        """Count a promoted checkpoint that cannot be served."""


class CheckpointWatcher:
    """Keeps the served model equal to the promoted checkpoint."""

    def __init__(
        self,
        models: ModelManager,
        folder: Path,
        load: Callable[[Path], LoadedModel],
        wait: Callable[[float], None],
        metrics: SwapObserver,
    ) -> None:
        """Prepare; `start` loads the first model.

        Args:
            models: Where the model is served.
            folder: The checkpoints and their promoted.json.
            load: Makes a model of a checkpoint.
            wait: Returns when a promotion is announced, or after so many seconds.
            metrics: Counts swaps and refusals.
        """
        self._models = models
        self._folder = folder
        self._load = load
        self._wait = wait
        self._metrics = metrics
        self._last_seen: tuple[_FileVersion, ...] | None = None
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="checkpoint-watcher", daemon=True)
        self.refused: RefusedCheckpoint | None = None  # None: the promoted checkpoint is the served one
        self.n_swaps = 0
        self.n_refused = 0

    def start(self) -> None:
        """Serve the promoted checkpoint, or the newest promoted before it that can be used; then keep watching."""
        self.poll()
        if self._models.is_empty and self.refused is not None:
            self._fall_back()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. Idempotent; does not wait for a load in progress."""
        self._is_stopping.set()

    def poll(self) -> None:
        """Swap the model if another checkpoint is promoted than at the last poll."""
        seen = self._promotion_version()
        if seen == self._last_seen:
            return
        self._last_seen = seen
        try:
            path = registry.promoted_path(self._folder)
        except CheckpointError as e:
            self._refuse(PROMOTED, e)
            return
        if path is None:
            return
        try:
            if not self._is_served(path):
                self._swap(path)
            self.refused = None
        except Exception as e:  # whatever is wrong with the new model, the old one goes on serving
            self._refuse(path.name, e)

    def _swap(self, path: Path) -> None:
        self._models.serve(self._load(path))
        self.n_swaps += 1
        self._metrics.count_model_swap()
        log.info("serving %s", path.name)

    def _is_served(self, path: Path) -> bool:
        """Whether the file has the weights that are served: it may have been written or promoted again."""
        if self._models.is_empty or self._models.current.name != path.name:
            return False
        return file_format.read_info(path).fingerprint == self._models.current.fingerprint

    def _fall_back(self) -> None:
        try:
            names = registry.promotion_history(self._folder)[1 : 1 + _MAX_FALLBACKS]
        except CheckpointError:
            return
        for name in names:
            try:
                self._swap(self._folder / name)
                return
            except Exception as e:
                log.warning("%s cannot be served either: %s", name, e)

    def _refuse(self, name: str, error: Exception) -> None:
        self.n_refused += 1
        self._metrics.count_refused_swap()
        if isinstance(error, CheckpointError):
            log.error("refused %s: %s", name, error)
        else:
            log.exception("refused %s because of an internal error", name)
        reason = str(ModelConflict.of(error, self._folder))  # anyone may read it
        self.refused = RefusedCheckpoint(name, reason or type(error).__name__)

    def _promotion_version(self) -> tuple[_FileVersion, ...]:
        """Identify the present contents of promoted.json and of the file that it names."""
        paths = [self._folder / PROMOTED]
        try:
            promoted = registry.promoted_path(self._folder)
            paths += [promoted] if promoted is not None else []
        except CheckpointError:
            pass  # poll() refuses it
        return tuple(file_identity(path) for path in paths)

    def _loop(self) -> None:
        while not self._is_stopping.is_set():
            self._wait(POLL_INTERVAL_S)
            if self._is_stopping.is_set():
                return
            try:
                self.poll()
            except Exception:
                log.exception("could not find out which checkpoint is promoted")
