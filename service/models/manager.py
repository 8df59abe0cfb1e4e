"""The model that new requests use, and the replaced ones that still finish theirs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from model.checkpoints.names import DEFAULT, is_fingerprint
from service.errors import Draining, ModelNotAllowed, NoModel, UnknownModel, UnknownSession
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.named_models import NamedModels
from service.store.sessions import SessionStore


class ModelManager:
    """Holds the current model. A request that began with a model keeps it until it ends. Thread-safe."""

    def __init__(
        self,
        describe_absence: Callable[[], dict[str, Any]] = dict,
        others: NamedModels | None = None,
        allowed: Callable[[], frozenset[str] | None] = lambda: None,
    ) -> None:
        """Start without a model.

        Args:
            describe_absence: Returns the details of the error NoModel, such as the job that trains the first model.
            others: The models that requests may name; None: they can use the default one only.
            allowed: Returns the names that the current request may use; None: all.
        """
        self._allowed = allowed
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

    def acquire(self, model: str | None = None, store: str = DEFAULT) -> ModelLease:
        """Return a lease of a model.

        Args:
            model: A name, or the fingerprint of a checkpoint; None: the default model.
            store: The name in whose store a fingerprint is looked up first.

        Raises:
            NoModel: No checkpoint of the model has been promoted yet.
            UnknownModel: There is no such model.
            ModelConflict: Its file cannot be used.
            Overloaded: The memory for models is taken by those that are in use.
            ModelNotAllowed: The request may not use it.
        """
        self.check_use(model)
        is_default = model is None or model == DEFAULT
        with self._lock:
            if self._current is not None and (is_default or self._current.fingerprint == model):
                return self._current.acquire()
        if model is None or is_default:
            raise NoModel("no model has been trained yet", **self._describe_absence())
        if self._others is None:
            raise UnknownModel(f"the model {model!r} does not exist", param="model")
        return self._others.acquire(model, store)

    def admit(self, model: str | None = None, store: str = DEFAULT) -> ModelLease:
        """Return a lease of a model for a new generation, as `acquire` does.

        Raises:
            Draining: This worker is shutting down.
        """
        if self._is_closed:
            raise Draining("this worker is shutting down; send the request to another one")
        return self.acquire(model, store)

    def check_use(self, model: str | None) -> None:
        """Check that the current request may use a model; of a fingerprint, that one of its models has it.

        Raises:
            ModelNotAllowed: It may not. The error does not say whether the model exists.
        """
        allowed = self._allowed()
        if allowed is None or (model or DEFAULT) in allowed:
            return
        if model is not None and is_fingerprint(model):
            current = self._current
            if DEFAULT in allowed and current is not None and current.fingerprint == model:
                return
            if self._others is not None and self._others.is_of(model, allowed):
                return
        names = ", ".join(sorted(allowed))
        raise ModelNotAllowed(
            f"this key may not use the model {model or DEFAULT!r}; it may use: {names}", param="model"
        )

    def of_session(self, sessions: SessionStore, session_id: str) -> str:
        """Return the name of the model that continues a session, which the current request must be allowed to use.

        Raises:
            UnknownSession: It does not exist, and the request may not use every model; else the name is `default`.
            ModelNotAllowed: The request may not use it.
            StoreUnavailable: The store does not answer.
        """
        name = sessions.model_of(session_id)
        if name is not None:
            self.check_use(name)
        elif self._allowed() is not None:
            raise UnknownSession("the session does not exist or has expired")
        return name or DEFAULT

    def name_of(self, fingerprint: str) -> str:
        """Return the name under which a session that begins with a checkpoint goes on.

        It is `default` or, if the current request may not use that, the one of its models that has the checkpoint.

        Raises:
            ModelNotAllowed: None of them has it.
        """
        allowed = self._allowed()
        if allowed is None or DEFAULT in allowed:
            return DEFAULT
        self.check_use(fingerprint)
        others = self._others
        return next((name for name in sorted(allowed) if others and others.is_of(fingerprint, [name])), DEFAULT)

    def may_use(self, name: str) -> bool:
        """Whether the current request may use the model of this name."""
        allowed = self._allowed()
        return allowed is None or name in allowed

    def is_loaded(self, fingerprint: str) -> bool:
        """Whether the weights are in this process's memory."""
        return any(model.fingerprint == fingerprint for model in self._models())

    def last_used_at(self, name: str) -> float | None:
        """When a request last used a model by its name in this process, in Unix seconds; None: never."""
        return self._others.last_used_at(name) if self._others is not None else None

    def forget(self, name: str) -> None:
        """Free the memory of a model that was deleted, if nothing uses it."""
        if self._others is not None:
            self._others.forget(name)

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
