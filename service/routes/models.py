"""GET /models, POST /models/{id}/promote, POST /models/rollback: which checkpoints there are, and which one serves."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, jsonify

from model.checkpoints import file_format, registry, self_test
from model.errors import CheckpointError, StorageError
from service.errors import ModelConflict, NoModel, UnknownModel
from service.models.manager import ModelManager
from service.routes.body import read_body
from service.schemas import EmptyBody
from service.store.promotions import Promotions


def blueprint(folder: Path, serving: ModelManager, promotions: Promotions) -> Blueprint:
    routes = Blueprint("models", __name__, url_prefix="/models")

    @routes.get("")
    def listing() -> Response:
        try:
            found = registry.list_checkpoints(folder)
        except CheckpointError as e:
            raise ModelConflict(str(e)) from e
        return jsonify(models=found, serving=_serving(serving))

    @routes.post("/<model_id:model_id>/promote")
    def promote(model_id: str) -> Response:
        """Only what could be served is promoted: the file is read whole, and its self-test made."""
        read_body(EmptyBody)
        path = registry.find(folder, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: no such model; GET /models lists them")
        try:
            self_test.verify_checkpoint(file_format.load(path))
            registry.promote(path)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict(str(e)) from e
        promotions.announce()
        return jsonify(promoted=file_format.read_info(path).as_dict())

    @routes.post("/rollback")
    def rollback() -> Response:
        read_body(EmptyBody)
        try:
            path = registry.roll_back(folder)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict(str(e)) from e
        promotions.announce()
        return jsonify(promoted=file_format.read_info(path).as_dict())

    return routes


def _serving(serving: ModelManager) -> dict[str, str] | None:
    try:
        return serving.current.as_dict()
    except NoModel:
        return None
