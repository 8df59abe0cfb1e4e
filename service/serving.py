"""Which model answers: a checkpoint on its engine, and the place where the one that is served stands."""

from __future__ import annotations

from dataclasses import dataclass

from service.engine.engine import Engine
from service.errors import NoModel


@dataclass(frozen=True, slots=True)
class Served:
    """A model that answers requests."""

    engine: Engine
    name: str  # the checkpoint's file name

    @property
    def fingerprint(self) -> str:
        return self.engine.fingerprint

    def as_dict(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "name": self.name}


class Serving:
    """Holds the model that new requests go to; requests that began on another keep it until they end."""

    def __init__(self) -> None:
        self._served: Served | None = None

    def serve(self, served: Served) -> None:
        """From now on new requests go to this one."""
        self._served = served

    @property
    def current(self) -> Served:
        """Raised: NoModel before the first."""
        if self._served is None:
            raise NoModel("no model has been trained yet")
        return self._served

    def stop(self) -> None:
        """End every text where it is. Idempotent."""
        if self._served is not None:
            self._served.engine.stop()
