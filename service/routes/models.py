"""/models: the models by name, their checkpoints, and which one of each is promoted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify

from model.checkpoints import file_format, registry
from model.checkpoints.names import DEFAULT
from model.errors import CheckpointError, StorageError
from service.errors import ModelConflict, NoModel, UnknownModel
from service.models.manager import ModelManager
from service.models.named_models import unknown_model
from service.models.stores.model_stores import ModelStores
from service.routes import audit
from service.routes.arguments import limit_argument, model_name_argument
from service.routes.body import no_content, read_body
from service.schemas import ModelBody
from service.store.promotions import Promotions, change_promotion

_SUMMARY = ("id", "corpus", "preset", "val_loss", "val_protocol", "created", "bytes")


def blueprint(
    stores: ModelStores, manager: ModelManager, promotions: Promotions, publish: Callable[[Path], None]
) -> Blueprint:
    """Create the routes; `publish` tests a checkpoint before it is promoted."""
    routes = Blueprint("models", __name__, url_prefix="/models")

    @routes.get("")
    def listing() -> Response:
        """A page of names, and the checkpoints of one model."""
        after, limit = model_name_argument("after", ""), limit_argument()
        displayed = model_name_argument()
        names = stores.names()
        first = 0 if not after else 1 if after == DEFAULT else 1 + sum(name <= after for name in names[1:])
        page = list(islice(names, first, first + limit))
        return jsonify(
            names=[_summary(stores, manager, name) for name in page],
            next=page[-1] if first + limit < len(names) else None,
            models=_checkpoints(existing(displayed)),
            serving=_current(manager),
        )

    @routes.get("/<model_name:model_name>")
    def get(model_name: str) -> Response:
        folder = existing(model_name)
        return jsonify(**_summary(stores, manager, model_name), models=_checkpoints(folder))

    @routes.delete("/<model_name:model_name>")
    def delete(model_name: str) -> Response:
        """Delete a model with all its checkpoints; running texts finish."""
        try:
            if not stores.remove(model_name):
                raise unknown_model(stores, model_name)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict(str(e)) from e
        manager.forget(model_name)
        promotions.release(0, model_name)  # a new model of this name begins there again
        audit.record(f"deleted the model {model_name}")
        return no_content()

    @routes.post("/<model_id:model_id>/promote")
    def promote(model_id: str) -> Response:
        """Promote a checkpoint that could be served: the file is read and tested first."""
        name = read_body(ModelBody).model
        folder = existing(name)
        path = stores.find_in(name, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: the model {name!r} has no such checkpoint; GET /models/{name} lists all")
        try:
            version = registry.promotion_version(folder)
            publish(path)
            change_promotion(promotions, version, partial(registry.promote, path), name)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict.of(e, folder) from e
        audit.record(f"promoted {model_id} of the model {name}")
        return jsonify(promoted=file_format.read_info(path).as_dict())

    @routes.post("/rollback")
    def rollback() -> Response:
        name = read_body(ModelBody).model
        folder = existing(name)
        try:
            version = registry.promotion_version(folder)
            path = change_promotion(promotions, version, partial(registry.roll_back, folder), name)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict.of(e, folder) from e
        promoted = file_format.read_info(path)
        audit.record(f"rolled the model {name} back to {promoted.fingerprint}")
        return jsonify(promoted=promoted.as_dict())

    def existing(name: str) -> Path:
        if not stores.exists(name):
            raise unknown_model(stores, name)
        return stores.folder(name)

    return routes


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    try:
        return registry.list_checkpoints(folder)
    except CheckpointError as e:
        raise ModelConflict.of(e, folder) from e


def _summary(stores: ModelStores, manager: ModelManager, name: str) -> dict[str, Any]:
    """Describe a model by its promoted checkpoint; without one, or where it cannot be read, its id is null."""
    folder = stores.folder(name)
    values: dict[str, Any] = dict.fromkeys(_SUMMARY)
    error = None
    try:
        path = registry.promoted_path(folder)
        if path is not None:
            info = stores.info(path).as_dict()
            values = {field: info[field] for field in _SUMMARY}
    except CheckpointError as e:
        error = str(ModelConflict.of(e, folder))
    is_loaded = values["id"] is not None and manager.is_loaded(values["id"])
    return {"name": name, **values, "error": error, "loaded": is_loaded, "last_used_at": manager.last_used_at(name)}


def _current(manager: ModelManager) -> dict[str, str] | None:
    try:
        return manager.current.as_dict()
    except NoModel:
        return None
