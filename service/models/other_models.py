"""Checkpoints beside the served one, loaded when a request names them: to compare models without promoting any.

Few are kept: each has an engine with slots of its own. The one that was used least recently makes place. A model whose
texts still run is freed when the last of them has ended, and is kept again if a request names it before.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from model.checkpoints import registry
from model.errors import CheckpointError
from service.errors import ModelConflict, Overloaded, UnknownModel
from service.models.loaded_model import LoadedModel, ModelLease

MAX_OTHER_MODELS = 2
"""Models that one process keeps loaded beside the served one."""
MAX_IN_MEMORY = 4
"""The same with those that made place and whose texts still run."""
_MAX_FAILURES = 64
_RETRY_AFTER_S = 5


class OtherModels:
    """Loads checkpoints of a folder by their ids. Thread-safe: a request waits for the load of its own model only."""

    def __init__(self, folder: Path, load: Callable[[Path], LoadedModel]) -> None:
        """Load nothing yet.

        Args:
            folder: The checkpoints.
            load: Makes a model of a checkpoint.
        """
        self._folder = folder
        self._load = load
        self._lock = threading.Lock()  # of all attributes below; nothing is read, loaded or freed while it is held
        self._kept: OrderedDict[str, LoadedModel] = OrderedDict()  # the one that was used last is the last
        self._retired: set[LoadedModel] = set()
        self._loading: dict[str, Future[None]] = {}
        self._n_loading = 0  # those for which there is place
        self._failures: OrderedDict[Path, tuple[tuple[int, int], str]] = OrderedDict()  # identity of the file, message

    def acquire(self, model_id: str) -> ModelLease:
        """Return a lease of a model; the first call for it loads it, which takes about a second.

        Raises:
            UnknownModel: No checkpoint has this id.
            ModelConflict: Its file cannot be used.
            Overloaded: As many models as may be in memory are in use.
        """
        while True:
            with self._lock:
                lease, evicted = self._lease(model_id)
                loading = self._loading.get(model_id)
                if lease is None and loading is None:
                    mine = self._loading[model_id] = Future()
                    break
            _free(evicted)
            if lease is not None:
                return lease
            assert loading is not None
            loading.result()  # raises what the load has raised
        return self._load_for_all(model_id, mine)

    def loaded(self) -> list[LoadedModel]:
        """Return all models that are in memory, those that end their last requests too."""
        with self._lock:
            return [*self._retired, *self._kept.values()]

    def _lease(self, model_id: str) -> tuple[ModelLease | None, list[LoadedModel]]:
        """Lease a model that is in memory, and return what it evicts. The caller has the lock."""
        model = self._kept.get(model_id)
        if model is not None:
            self._kept.move_to_end(model_id)
            return model.acquire(), []
        for model in self._retired:
            if model.fingerprint == model_id and (lease := model.reinstate()) is not None:
                self._retired.remove(model)
                self._kept[model_id] = model
                return lease, self._evict(MAX_OTHER_MODELS)
        return None, []

    def _load_for_all(self, model_id: str, loading: Future[None]) -> ModelLease:
        """Load a model, and wake up all that wait for it."""
        try:
            lease, evicted = self._load_and_keep(model_id)
        except BaseException as e:
            with self._lock:
                self._loading.pop(model_id, None)
            loading.set_exception(e)
            raise
        loading.set_result(None)
        _free(evicted)
        return lease

    def _load_and_keep(self, model_id: str) -> tuple[ModelLease, list[LoadedModel]]:
        path = registry.find(self._folder, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: no such model; GET /models lists all", param="model")
        identity = _identity(path)
        self._check_failure(path, identity)
        self._make_place(model_id)
        try:
            model = self._load(path)
        except BaseException as e:
            with self._lock:
                self._n_loading -= 1
            if not isinstance(e, CheckpointError):
                raise
            conflict = ModelConflict.of(e, self._folder)
            self._remember_failure(path, identity, str(conflict))
            raise conflict from e
        with self._lock:
            del self._loading[model_id]
            self._n_loading -= 1
            self._kept[model_id] = model
            return model.acquire(), self._evict(MAX_OTHER_MODELS)

    def _make_place(self, model_id: str) -> None:
        """Evict what makes place for one more model, before it is loaded.

        Raises:
            Overloaded: All that could be evicted is in use.
        """
        evicted = []
        with self._lock:
            in_use = self._n_retired() + sum(model.n_leases > 0 for model in self._kept.values())
            has_place = in_use + self._n_loading < MAX_IN_MEMORY
            if has_place:
                evicted = self._evict(max(0, MAX_OTHER_MODELS - self._n_loading - 1))
                if self._n_retired() + len(self._kept) + self._n_loading >= MAX_IN_MEMORY:
                    evicted += self._evict(0)
                self._n_loading += 1
        _free(evicted)
        if not has_place:
            problem = f"{model_id}: {MAX_IN_MEMORY} other models are in use; retry when a text has ended"
            raise Overloaded(problem, retry_after_s=_RETRY_AFTER_S)

    def _n_retired(self) -> int:
        """The number of models that made place and are still in use."""
        return sum(model.n_leases > 0 for model in self._retired)

    def _evict(self, n_kept: int) -> list[LoadedModel]:
        """Retire models until so many are kept, unused ones first. The caller has the lock.

        Returns:
            Those without a lease, which the caller frees when it no longer has the lock.
        """
        unused = []
        while len(self._kept) > n_kept:
            model_id = next((i for i, model in self._kept.items() if model.n_leases == 0), next(iter(self._kept)))
            model = self._kept.pop(model_id)
            self._retired.add(model)
            if model.mark_retired(self._forget):
                unused.append(model)
        return unused

    def _check_failure(self, path: Path, identity: tuple[int, int]) -> None:
        """Refuse a file that could not be used before, and has not been changed since.

        Raises:
            ModelConflict: It is one.
        """
        with self._lock:
            failed, problem = self._failures.get(path, (None, ""))
        if failed == identity:
            raise ModelConflict(problem)

    def _remember_failure(self, path: Path, identity: tuple[int, int], problem: str) -> None:
        with self._lock:
            self._failures[path] = identity, problem
            if len(self._failures) > _MAX_FAILURES:
                self._failures.popitem(last=False)

    def _forget(self, model: LoadedModel) -> None:
        with self._lock:
            self._retired.discard(model)


def _free(models: list[LoadedModel]) -> None:
    for model in models:
        model.free()


def _identity(path: Path) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:  # removed meanwhile, which the load will say
        return 0, 0
    return stat.st_mtime_ns, stat.st_size
