"""Checkpoints beside the served one, loaded when a request names them: to compare models without promoting any.

Few are kept: each has an engine with slots of its own. The one that was used least recently makes place, and is freed
when its last request has ended.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from model.checkpoints import registry
from model.errors import CheckpointError
from service.errors import ModelConflict, UnknownModel
from service.models.loaded_model import LoadedModel, ModelLease

MAX_OTHER_MODELS = 2
"""Models that one process keeps loaded beside the served one."""


class OtherModels:
    """Loads checkpoints of a folder by their ids. Thread-safe."""

    def __init__(self, folder: Path, load: Callable[[Path], LoadedModel]) -> None:
        """Load nothing yet.

        Args:
            folder: The checkpoints.
            load: Makes a model of a checkpoint.
        """
        self._folder = folder
        self._load = load
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # the one that was used last is the last
        self._retired: set[LoadedModel] = set()

    def acquire(self, model_id: str) -> ModelLease:
        """Return a lease of a model; the first call for it loads it, which takes about a second.

        Raises:
            UnknownModel: No checkpoint has this id.
            ModelConflict: Its file cannot be used.
        """
        evicted = []
        with self._lock:
            if model_id not in self._loaded:
                self._loaded[model_id] = self._load_from_folder(model_id)
                while len(self._loaded) > MAX_OTHER_MODELS:
                    evicted.append(self._loaded.popitem(last=False)[1])
            self._loaded.move_to_end(model_id)
            lease = self._loaded[model_id].acquire()
            self._retired.update(evicted)
        for model in evicted:
            model.retire(self._forget)
        return lease

    def loaded(self) -> list[LoadedModel]:
        """Return all models that are in memory, those that end their last requests too."""
        with self._lock:
            return [*self._retired, *self._loaded.values()]

    def _load_from_folder(self, model_id: str) -> LoadedModel:
        path = registry.find(self._folder, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: no such model; GET /models lists all", param="model")
        try:
            return self._load(path)
        except CheckpointError as e:
            raise ModelConflict(str(e)) from e

    def _forget(self, model: LoadedModel) -> None:
        with self._lock:
            self._retired.discard(model)
