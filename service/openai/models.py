"""The models as the protocol names them: the default one is `longhand`, others have their names."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from model.checkpoints import registry
from model.checkpoints.file_format import read_info
from model.checkpoints.names import DEFAULT, NAME, OPENAI_DEFAULT, is_model_name
from model.errors import CheckpointError
from service.errors import NoModel, UnknownModel
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.manager import ModelManager
from service.models.stores.model_stores import ModelStores

SERVED = OPENAI_DEFAULT
"""The default model, whatever its checkpoint is."""


def acquire(models: ModelManager, name: str | None) -> ModelLease:
    """Return a lease of the model that a request names.

    Args:
        models: Has them.
        name: `longhand`, a model's name, the id of a checkpoint, or the file name of the default model's; None: as
            `longhand`.

    Raises:
        UnknownModel: There is no such model.
        NoModel: No checkpoint of it has been promoted yet.
    """
    if name is None or name == SERVED:
        return models.acquire()
    if re.fullmatch(NAME, name):
        return models.acquire(name)
    lease = models.acquire()
    if name in (lease.model.name, Path(lease.model.name).stem):
        return lease
    lease.release()
    message = f"the model {name[:80]!r} is not served; GET /v1/models lists the names, {SERVED!r} is the default one"
    raise UnknownModel(message, param="model")


class ModelList:
    """GET /v1/models."""

    def __init__(self, models: ModelManager, stores: ModelStores) -> None:
        """List the models of `models`; their files in `stores` tell when they were made."""
        self._models = models
        self._stores = stores

    def listing(self) -> list[dict[str, Any]]:
        """Return the default model as `longhand` and as its fingerprint, if it is served, and the names of others."""
        names = [name for name in self._stores.names() if name != DEFAULT and self._models.may_use(name)]
        others = [_model(name, promoted_at) for name in names if (promoted_at := self._promoted_at(name))]
        if not self._models.may_use(DEFAULT):
            return others
        try:
            model = self._models.current
        except NoModel:
            return others
        created = self._created(model)
        return [*(_model(name, created) for name in (SERVED, model.fingerprint)), *others]

    def get(self, name: str) -> dict[str, Any]:
        """Return one model.

        Raises:
            UnknownModel: There is none of this name.
            NoModel: No model is served.
            ModelNotAllowed: The request may not use it.
        """
        is_other = name != DEFAULT and is_model_name(name) and self._models.may_use(name)
        if is_other and (promoted_at := self._promoted_at(name)):
            return _model(name, promoted_at)
        with acquire(self._models, name) as lease:
            return _model(name, self._created(lease.model))

    def _promoted_at(self, name: str) -> int:
        """When the model's checkpoint was promoted, in Unix seconds; 0 if none is."""
        try:
            return int((self._stores.folder(name) / registry.PROMOTED).stat().st_mtime)
        except OSError:
            return 0

    def _created(self, model: LoadedModel) -> int:
        """When the checkpoint was made, in Unix seconds; 0 if its file is gone."""
        path = self._stores.find(model.fingerprint)
        try:
            created = read_info(path).run["created"] if path is not None else ""
            return int(datetime.fromisoformat(created).timestamp())
        except (CheckpointError, ValueError):
            return 0


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "longhand"}
