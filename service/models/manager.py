"""Which model answers: a checkpoint on its engine, and the place where the one that is served stands.

A model that was replaced is freed when nobody holds it any more: each request holds the `LoadedModel` that it began with
until it has been answered, so the object's own life is the count of its users, from the look at `current` on.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model.stepper import Stepper
from service.engine.engine import Engine
from service.errors import Draining, NoModel
from service.inspection.token_logprobs import OnDemandNetwork

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class LoadedModel:
    """A model that answers requests."""

    engine: Engine
    name: str  # the checkpoint's file name
    stepper: Stepper | None = field(default=None, repr=False)  # to be closed when this is retired, if it can be
    reader: OnDemandNetwork = field(default_factory=OnDemandNetwork, repr=False)

    @property
    def fingerprint(self) -> str:
        return self.engine.fingerprint

    def as_dict(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "name": self.name}


@dataclass(slots=True)
class _Retired:
    users: weakref.ref[LoadedModel]
    engine: Engine
    stepper: Stepper | None

    @property
    def is_idle(self) -> bool:
        return self.users() is None and self.engine.in_flight == 0

    def free(self) -> None:
        self.engine.stop()
        free(self.stepper)


def free(stepper: Stepper | None) -> None:
    """Give back what a stepper holds outside Python, if it does."""
    close = getattr(stepper, "close", None)
    if close is not None:
        close()


class ModelManager:
    """Holds the model that new requests go to; requests that began on another keep it until they end."""

    def __init__(self, while_empty: Callable[[], dict[str, Any]] = dict) -> None:
        self._served: LoadedModel | None = None
        self._retired: list[_Retired] = []
        self._while_empty = while_empty  # what a refusal adds while there is no model: the job that makes one
        self._closed = False

    def serve(self, served: LoadedModel) -> None:
        """From now on new requests go to this one. Only one thread calls this and `free_retired`."""
        before, self._served = self._served, served
        if before is not None:
            self._retired.append(_Retired(weakref.ref(before), before.engine, before.stepper))

    @property
    def current(self) -> LoadedModel:
        """Raised: NoModel before the first."""
        served = self._served
        if served is None:
            raise NoModel("no model has been trained yet", **self._while_empty())
        return served

    def admit(self) -> LoadedModel:
        """The model for a new text. Raised: Draining when no more are taken, NoModel before the first."""
        if self._closed:
            raise Draining("this worker is stopping; another takes the request")
        return self.current

    @property
    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Take no more texts; those that run go on."""
        self._closed = True

    @property
    def in_flight(self) -> int:
        """Texts that run or wait, those on replaced models too."""
        return sum(engine.in_flight for engine in self._engines())

    @property
    def is_empty(self) -> bool:
        return self._served is None

    @property
    def n_retired(self) -> int:
        """Models that were replaced and still finish texts."""
        return len(self._retired)

    def free_retired(self) -> None:
        """Stop the engines of replaced models that nobody uses any more, and give their memory back."""
        if any(each.engine.in_flight == 0 and each.users() is not None for each in self._retired):
            gc.collect(1)  # a request that ended in an error may be kept by its traceback
        for each in [r for r in self._retired if r.is_idle]:
            self._retired.remove(each)
            each.free()
            log.info("a replaced model was freed: %s", each.engine.fingerprint)

    def stop(self) -> None:
        """End every text where it is. Idempotent."""
        for engine in self._engines():
            engine.stop()

    def _engines(self) -> list[Engine]:
        return [r.engine for r in list(self._retired)] + ([self._served.engine] if self._served else [])
