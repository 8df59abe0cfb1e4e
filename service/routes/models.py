"""GET /models, POST /models/{id}/promote, POST /models/rollback: the checkpoints, and which one is served."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flask import Blueprint, Response, jsonify

from model.checkpoints import file_format, registry, self_test
from model.errors import CheckpointError, StorageError
from service.errors import ModelConflict, NoModel, UnknownModel
from service.models.manager import ModelManager
from service.routes.body import read_body
from service.schemas import EmptyBody
from service.store.promotions import Promotions, change_promotion


def blueprint(folder: Path, manager: ModelManager, promotions: Promotions) -> Blueprint:
    """Create the routes."""
    routes = Blueprint("models", __name__, url_prefix="/models")

    @routes.get("")
    def listing() -> Response:
        try:
            checkpoints = registry.list_checkpoints(folder)
        except CheckpointError as e:
            raise ModelConflict.of(e, folder) from e
        return jsonify(models=checkpoints, serving=_current(manager))

    @routes.post("/<model_id:model_id>/promote")
    def promote(model_id: str) -> Response:
        """Promote a checkpoint that could be served: the file is read and its self-test is run first."""
        read_body(EmptyBody)
        path = registry.find(folder, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: no such model; GET /models lists all")
        try:
            version = registry.promotion_version(folder)
            self_test.verify_checkpoint(file_format.load(path))
            change_promotion(promotions, version, partial(registry.promote, path))
        except (CheckpointError, StorageError) as e:
            raise ModelConflict.of(e, folder) from e
        return jsonify(promoted=file_format.read_info(path).as_dict())

    @routes.post("/rollback")
    def rollback() -> Response:
        read_body(EmptyBody)
        try:
            version = registry.promotion_version(folder)
            path = change_promotion(promotions, version, partial(registry.roll_back, folder))
        except (CheckpointError, StorageError) as e:
            raise ModelConflict.of(e, folder) from e
        return jsonify(promoted=file_format.read_info(path).as_dict())

    return routes


def _current(manager: ModelManager) -> dict[str, str] | None:
    try:
        return manager.current.as_dict()
    except NoModel:
        return None
