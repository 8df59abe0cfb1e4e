"""The models as the protocol names them: the served one, under a name that stays and under that of its weights."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from model.checkpoints import registry
from model.checkpoints.file_format import read_info
from model.errors import CheckpointError
from service.errors import NoModel, UnknownModel
from service.models.loaded_model import LoadedModel

SERVED = "longhand"
"""Always the model that is served now."""


def check_name(name: str | None, model: LoadedModel) -> str:
    """Return the name that an answer carries.

    Args:
        name: The request's; None for the served model.
        model: The served model.

    Raises:
        UnknownModel: The name is not one of the served model.
    """
    if name is None:
        return SERVED
    if name not in (SERVED, model.fingerprint, model.name, Path(model.name).stem):
        message = (
            f"the model {name[:80]!r} is not served; use {SERVED!r} for the served model, or {model.fingerprint!r}"
        )
        raise UnknownModel(message, param="model")
    return name


class ModelList:
    """GET /v1/models."""

    def __init__(self, current: Callable[[], LoadedModel], checkpoint_dir: Path) -> None:
        """List the model that `current` returns; its file tells when it was made."""
        self._current = current
        self._folder = checkpoint_dir

    def listing(self) -> list[dict[str, Any]]:
        """Return every name of the served model; nothing while no model is served."""
        try:
            model = self._current()
        except NoModel:
            return []
        created = self._created(model)
        return [_model(name, created) for name in (SERVED, model.fingerprint)]

    def get(self, name: str) -> dict[str, Any]:
        """Return one model.

        Raises:
            UnknownModel: The name is not one of the served model.
            NoModel: No model is served.
        """
        model = self._current()
        return _model(check_name(name, model), self._created(model))

    def _created(self, model: LoadedModel) -> int:
        """When the checkpoint was made, in Unix seconds; 0 if its file is gone."""
        path = registry.find(self._folder, model.fingerprint)
        try:
            created = read_info(path).run["created"] if path is not None else ""
            return int(datetime.fromisoformat(created).timestamp())
        except (CheckpointError, ValueError):
            return 0


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "longhand"}
