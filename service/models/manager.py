"""The model that new requests use, and the replaced ones that still finish theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from service.errors import Draining, NoModel
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.other_models import OtherModels


class ModelManager:
    """Holds the current model. A request that began with a model keeps it until it ends. Thread-safe."""

    def __init__(
        self, describe_absence: Callable[[], dict[str, Any]] = dict, others: OtherModels | None = None
    ) -> None:
        """Start without a model.

        Args:
            describe_absence: Returns the details of the error NoModel, such as the job that trains the first model.
            others: Checkpoints that requests may name; None: they can use the served one only.
        """
        self._others = others
        self._describe_absence = describe_absence
        self._lock = threading.Lock()
        self._current: LoadedModel | None = None
        self._retired: set[LoadedModel] = set()
        self._is_closed = False

    def serve(self, model: LoadedModel) -> None:
        """Use this model for new requests; the one before it is freed when its last request has ended."""
        with self._lock:
            replaced, self._current = self._current, model
            if replaced is not None:
                self._retired.add(replaced)
        if replaced is not None:
            replaced.retire(self._forget)

    @property
    def current(self) -> LoadedModel:
        """The current model, to read its attributes. A request that generates with it needs a lease.

        Raises:
            NoModel: No model is served yet.
        """
        current = self._current
        if current is None:
            raise NoModel("no model has been trained yet", **self._describe_absence())
        return current

    def acquire(self) -> ModelLease:
        """Return a lease of the current model.

        Raises:
            NoModel: No model is served yet.
        """
        with self._lock:
            if self._current is not None:
                return self._current.acquire()
        raise NoModel("no model has been trained yet", **self._describe_absence())

    def admit(self, model_id: str | None = None) -> ModelLease:
        """Return a lease of a model for a new generation.

        Args:
            model_id: The fingerprint of a checkpoint; None: the current model.

        Raises:
            Draining: This worker is shutting down.
            NoModel: No model is served yet.
            UnknownModel: No checkpoint has this id.
            ModelConflict: The file of the named checkpoint cannot be used.
        """
        if self._is_closed:
            raise Draining("this worker is shutting down; send the request to another one")
        current = self._current
        if model_id is not None and self._others is not None and (current is None or current.fingerprint != model_id):
            return self._others.acquire(model_id)
        return self.acquire()

    def close(self) -> None:
        """Admit no new generation; those that run continue."""
        self._is_closed = True

    @property
    def is_closed(self) -> bool:
        """Whether new generations are refused."""
        return self._is_closed

    @property
    def is_empty(self) -> bool:
        """Whether no model is served yet."""
        return self._current is None

    @property
    def in_flight(self) -> int:
        """The number of sequences that run or wait, those of replaced models too."""
        return sum(model.engine.in_flight for model in self._models())

    @property
    def n_retired(self) -> int:
        """The number of replaced models that are not freed yet."""
        return len(self._retired)

    def stop(self) -> None:
        """End every sequence where it is. Idempotent."""
        for model in self._models():
            model.engine.stop()

    def _models(self) -> list[LoadedModel]:
        with self._lock:
            served = [*self._retired, *([self._current] if self._current is not None else [])]
        return served + (self._others.loaded() if self._others is not None else [])

    def _forget(self, model: LoadedModel) -> None:
        with self._lock:
            self._retired.discard(model)
