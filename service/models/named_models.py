"""The models that requests name, loaded when a request needs them, within a limit of memory.

A request names a model by its name, and then gets its promoted checkpoint, or a checkpoint by its fingerprint. The
model whose memory was used least of late makes place (eviction.py); one that a request uses is never evicted. The
default model is not here: it stays loaded.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Protocol

from model.checkpoints import registry
from model.checkpoints.names import DEFAULT, is_fingerprint, is_model_name
from model.config import ModelConfig
from model.errors import CheckpointError
from service.errors import ModelConflict, NoModel, Overloaded, UnknownModel
from service.models.eviction import UseCounts
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.stores.file_cache import file_identity
from service.models.stores.model_stores import ModelStores

log = logging.getLogger(__name__)
MAX_NAMED = 10_000
"""Names of which a process remembers the promoted checkpoint."""
_CONCURRENT_LOADS = 4
_MAX_FAILURES = 64
_RETRY_AFTER_S = 5
_WAIT_S = 1.0
"""How long a load waits for memory that models in use take: most are in use for less than a block."""
_MAX_WAITING = 32  # loads; others are refused at once, and hold no thread
_Identity = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Promoted:
    """The promoted checkpoint of a name, while it and its promoted.json are the files that were read."""

    identity: _Identity  # of promoted.json
    file: _Identity  # of the checkpoint
    path: Path
    fingerprint: str


class LoadObserver(Protocol):
    """Counts what is loaded and evicted. service.operations.metrics implements it, one level above."""

    def count_model_load(self, seconds: float) -> None:
        """Count a model that is in memory from now on, and took so long to load."""

    def count_model_eviction(self) -> None:
        """Count a model that is not in memory any more."""


class NullLoadObserver:
    """A LoadObserver that ignores everything."""

    def count_model_load(self, seconds: float) -> None:
        """Do nothing."""

    def count_model_eviction(self) -> None:
        """Do nothing."""


class NamedModels:
    """Loads models by name or fingerprint. Thread-safe: a request waits for the load of its own model only."""

    def __init__(
        self,
        stores: ModelStores,
        load: Callable[[Path], LoadedModel],
        max_bytes: int,
        observer: LoadObserver | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            stores: Where the models lie.
            load: Makes a model of a checkpoint.
            max_bytes: The most memory of all models here: weights, tables, slots, networks of /score.
            observer: Counts loads and evictions.
        """
        self._stores = stores
        self._load = load
        self._observer = observer or NullLoadObserver()
        self._max_bytes = max_bytes
        self._load_capacity = threading.BoundedSemaphore(max(_CONCURRENT_LOADS, os.cpu_count() or 1))
        self._lock = threading.Lock()  # of all attributes below; nothing is read, loaded or freed while it is held
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # the one that was used last is the last
        self._loading: dict[str, Future[None]] = {}
        self._bytes: dict[str, int] = {}  # of those that are loaded, and reserved for those that are being loaded
        self._n_bytes = 0  # all of them
        self._uses = UseCounts()
        self._sizes: dict[ModelConfig, int] = {}  # measured bytes of models of a shape
        self._failures: OrderedDict[Path, tuple[_Identity, str]] = OrderedDict()  # identity of the file, message
        self._promoted: OrderedDict[str, _Promoted] = OrderedDict()
        self._answering: dict[str, str] = {}  # the fingerprint that answered last, by name
        self._used_at: dict[str, float] = {}  # by name
        self._unused = threading.Condition(self._lock)  # a model is not in use any more
        self._n_waiting = 0

    def acquire(self, model: str, store: str = DEFAULT) -> ModelLease:
        """Return a lease of a model; a request that needs one that is not in memory loads it.

        A promoted checkpoint that cannot be used does not replace the one that answered before, while that is loaded.

        Args:
            model: A name, or the fingerprint of a checkpoint.
            store: The name in whose store a fingerprint is looked up first.

        Raises:
            UnknownModel: There is no such model.
            NoModel: No checkpoint of this name has been promoted yet.
            ModelConflict: The file cannot be used, or the model is larger than the memory for models.
            Overloaded: The memory is taken by models that are in use.
        """
        if is_fingerprint(model):
            return self._acquire(model, lambda: self._find(model, store))
        if not is_model_name(model):
            raise unknown_model(self._stores, model)
        try:
            promoted = self._promotion_of(model)
            lease = self._acquire(promoted.fingerprint, lambda: promoted.path)
        except ModelConflict as e:
            with self._lock:
                before = self._answering.get(model)
                answering = self._lease(before) if before is not None else None
            if answering is None:
                raise
            log.error("the promoted checkpoint of the model %s cannot be used, the one before it answers: %s", model, e)
            return answering
        with self._lock:
            self._answering[model] = promoted.fingerprint
            if model in self._promoted:
                self._promoted.move_to_end(model)
            self._used_at[model] = time.time()
        return lease

    def is_of(self, fingerprint: str, names: Iterable[str]) -> bool:
        """Whether one of these models has a checkpoint of this fingerprint."""
        return any(self._stores.find_in(name, fingerprint) is not None for name in names)

    def loaded(self) -> list[LoadedModel]:
        """Return all models that are in memory."""
        with self._lock:
            return list(self._loaded.values())

    @property
    def n_waiting(self) -> int:
        """The number of loads that wait for memory."""
        return self._n_waiting

    @property
    def n_bytes(self) -> int:
        """The memory of the models that are loaded, and what is reserved for those that are being loaded."""
        return self._n_bytes

    def last_used_at(self, name: str) -> float | None:
        """When a request last used a model by its name, in Unix seconds; None: never in this process."""
        with self._lock:
            return self._used_at.get(name)

    def forget(self, name: str) -> None:
        """Free the memory of a model that was deleted; one that is in use is evicted as any other."""
        with self._lock:
            self._promoted.pop(name, None)
            self._used_at.pop(name, None)
            fingerprint = self._answering.pop(name, None)
            is_shared = fingerprint in self._answering.values()
            model = self._loaded.get(fingerprint) if fingerprint is not None and not is_shared else None
            unused = [] if model is None or model.n_leases else [self._retire(model)]
        _free(unused)

    # ---- names

    def _promotion_of(self, name: str) -> _Promoted:
        """Return the promoted checkpoint of a name; promoted.json is read when it has changed.

        Raises:
            UnknownModel: There is no model of this name.
            NoModel: No checkpoint has been promoted yet.
            ModelConflict: promoted.json, or the file that it names, cannot be used.
        """
        folder = self._stores.folder(name)
        identity = file_identity(folder / registry.PROMOTED)
        with self._lock:
            known = self._promoted.get(name)
        if known is not None and (identity, file_identity(known.path)) == (known.identity, known.file):
            return known
        try:
            path = registry.promoted_path(folder)
            if path is None:
                raise self._without_promotion(name)
            file = file_identity(path)
            promoted = _Promoted(identity, file, path, self._stores.info(path).fingerprint)
        except CheckpointError as e:
            raise ModelConflict.of(e, folder) from e
        with self._lock:
            self._promoted[name] = promoted
            if len(self._promoted) > MAX_NAMED:
                self._promoted.popitem(last=False)
        return promoted

    def _without_promotion(self, name: str) -> UnknownModel | NoModel:
        if self._stores.exists(name):
            return NoModel(f"no checkpoint of the model {name!r} has been promoted yet")
        return unknown_model(self._stores, name)

    def _find(self, fingerprint: str, store: str) -> Path:
        path = self._stores.find(fingerprint, store)
        if path is None:
            raise UnknownModel(f"{fingerprint}: no such model; GET /models lists all", param="model")
        return path

    # ---- loads

    def _acquire(self, fingerprint: str, find: Callable[[], Path]) -> ModelLease:
        while True:
            with self._lock:
                lease = self._lease(fingerprint)
                if lease is not None:
                    return lease
                loading = self._loading.get(fingerprint)
                if loading is None:
                    mine = self._loading[fingerprint] = Future()
                    break
            loading.result()  # raises what the load has raised
        return self._load_for_all(fingerprint, find, mine)

    def _lease(self, fingerprint: str) -> ModelLease | None:
        """Lease a model that is in memory. The caller has the lock."""
        model = self._loaded.get(fingerprint)
        if model is None:
            return None
        self._loaded.move_to_end(fingerprint)
        self._uses.use(fingerprint, len(self._loaded))
        return model.acquire()

    def _load_for_all(self, fingerprint: str, find: Callable[[], Path], loading: Future[None]) -> ModelLease:
        """Load a model, and wake up all that wait for it."""
        try:
            lease, evicted = self._load_and_keep(fingerprint, find())
        except BaseException as e:
            with self._lock:
                self._loading.pop(fingerprint, None)
            loading.set_exception(e)
            raise
        loading.set_result(None)
        _free(evicted)
        return lease

    def _load_and_keep(self, fingerprint: str, path: Path) -> tuple[ModelLease, list[LoadedModel]]:
        identity = file_identity(path)
        self._check_failure(path, identity)
        try:
            config = self._reserve(fingerprint, path)
            with self._load_capacity:
                started = time.monotonic()
                model = self._load(path)
                seconds = time.monotonic() - started
            if model.fingerprint != fingerprint:
                model.retire(_ignore)
                raise ModelConflict(f"{path.name} was replaced by another checkpoint while it was loaded; try again")
        except BaseException as e:
            with self._lock:
                self._count_bytes(fingerprint, 0)
            if not isinstance(e, CheckpointError):
                raise
            conflict = ModelConflict.of(e, path.parent)
            self._remember_failure(path, identity, str(conflict))
            raise conflict from e
        with self._lock:
            del self._loading[fingerprint]
            self._sizes[config] = model.n_bytes
            self._count_bytes(fingerprint, model.n_bytes)
            self._loaded[fingerprint] = model
            self._uses.use(fingerprint, len(self._loaded))
            model.on_unused = self._make_use_of_unused
            model.network.on_loaded = partial(self._recount, fingerprint)
            self._observer.count_model_load(seconds)
            lease = model.acquire()
            return lease, self._evict(0)

    def _reserve(self, fingerprint: str, path: Path) -> ModelConfig:
        """Reserve the memory of a model before it is loaded, and evict what has to make place.

        Returns:
            The model's shape.

        Raises:
            CheckpointError: Its file cannot be used.
            ModelConflict: It is larger than all the memory.
            Overloaded: Too much of it is in use, and stays so.
        """
        info = self._stores.info(path)
        with self._lock:
            n_bytes = self._sizes.get(info.config, info.size_bytes)  # what a model of this shape took, if one was here
            if n_bytes > self._max_bytes:
                raise ModelConflict(
                    f"the model takes {n_bytes >> 20} MB, and MODELS_MEMORY_MB allows {self._max_bytes >> 20}"
                )
        deadline = time.monotonic() + _WAIT_S
        while not self._make_place(fingerprint, n_bytes, deadline):
            if time.monotonic() >= deadline:
                problem = f"the memory for models ({self._max_bytes >> 20} MB) is taken by those in use"
                raise Overloaded(f"{problem}; retry in a moment", retry_after_s=_RETRY_AFTER_S)
        return info.config

    def _make_place(self, fingerprint: str, n_bytes: int, deadline: float) -> bool:
        """Evict what has to make place and reserve it; if what is in use does not leave it, wait for a model.

        Raises:
            Overloaded: As many loads wait as may.
        """
        with self._lock:
            evicted = self._evict(n_bytes)
            has_place = self._n_bytes + n_bytes <= self._max_bytes
            if has_place:
                self._count_bytes(fingerprint, n_bytes)
            elif not evicted:
                if self._n_waiting >= _MAX_WAITING:
                    raise Overloaded(f"{_MAX_WAITING} loads wait for memory", retry_after_s=_RETRY_AFTER_S)
                self._n_waiting += 1
                self._unused.wait(deadline - time.monotonic())
                self._n_waiting -= 1
        _free(evicted)
        return has_place

    def _make_use_of_unused(self) -> None:
        """A model is not in use any more: evict if there is too much, and wake up the loads that wait for memory."""
        with self._lock:
            evicted = self._evict(0)
            self._unused.notify_all()
        _free(evicted)

    def _recount(self, fingerprint: str) -> None:
        """Count the memory of a loaded model anew, because the network of /score has been loaded beside it."""
        with self._lock:
            model = self._loaded.get(fingerprint)
            if model is None:
                return
            self._count_bytes(fingerprint, model.n_bytes)
            evicted = self._evict(0)
        _free(evicted)

    def _count_bytes(self, fingerprint: str, n_bytes: int) -> None:
        """Remember what a model takes, or will take; 0: nothing any more. The caller has the lock."""
        self._n_bytes += n_bytes - self._bytes.pop(fingerprint, 0)
        if n_bytes:
            self._bytes[fingerprint] = n_bytes

    def _evict(self, n_bytes: int) -> list[LoadedModel]:
        """Retire models that nobody uses, those whose memory was used least first, until so much is free.

        The caller has the lock.

        Returns:
            Those that the caller frees when it no longer has the lock.
        """
        excess = self._n_bytes + n_bytes - self._max_bytes
        if excess <= 0:
            return []
        unused = [(self._worth(m), m) for m in self._loaded.values() if m.n_leases == 0]
        evicted = []
        for _, model in sorted(unused, key=itemgetter(0)):  # of equal ones, the one that was used last is the last
            if excess <= 0:
                break
            excess -= self._bytes.get(model.fingerprint, 0)
            evicted.append(self._retire(model))
        return evicted

    def _worth(self, model: LoadedModel) -> float:
        """Return how much a byte of a model was used of late. The caller has the lock."""
        return self._uses.count(model.fingerprint) / max(1, self._bytes.get(model.fingerprint, 0))

    def _retire(self, model: LoadedModel) -> LoadedModel:
        """Take a model without a lease out of the table. The caller has the lock, and frees the model afterwards."""
        del self._loaded[model.fingerprint]
        self._count_bytes(model.fingerprint, 0)
        self._observer.count_model_eviction()
        model.mark_retired(_ignore)
        return model

    def _check_failure(self, path: Path, identity: _Identity) -> None:
        """Refuse a file that could not be used before, and has not been changed since.

        Raises:
            ModelConflict: It is one.
        """
        with self._lock:
            failed, problem = self._failures.get(path, (None, ""))
        if failed == identity:
            raise ModelConflict(problem)

    def _remember_failure(self, path: Path, identity: _Identity, problem: str) -> None:
        with self._lock:
            self._failures[path] = identity, problem
            if len(self._failures) > _MAX_FAILURES:
                self._failures.popitem(last=False)


def unknown_model(stores: ModelStores, name: str) -> UnknownModel:
    """Return the error of a name that no model has, with the names that are close to it."""
    close = stores.close_names(name)
    hint = f"; close names: {', '.join(close)}" if close else ""
    return UnknownModel(f"the model {name!r} does not exist{hint}", param="model", close=close)


def _free(models: list[LoadedModel]) -> None:
    for model in models:
        model.free()


def _ignore(model: LoadedModel) -> None:
    """A freed model is in no table any more."""
