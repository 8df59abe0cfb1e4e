"""The addresses below /models: the checkpoints as a list and as files, and which one is served."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flask import Blueprint, Response, jsonify, request, send_file
from werkzeug.exceptions import RequestEntityTooLarge

from model.checkpoints import file_format, registry, self_test
from model.errors import CheckpointError, StorageError
from service.errors import BodyTooLarge, ModelConflict, NoModel, UnknownModel, WrongMediaType
from service.models.manager import ModelManager
from service.models.uploads import store_upload
from service.routes.body import StreamedBody, no_content, read_body
from service.schemas import EmptyBody
from service.store.promotions import Promotions, change_promotion

BINARY = "application/octet-stream"


def blueprint(folder: Path, manager: ModelManager, promotions: Promotions, max_bytes: int) -> Blueprint:
    """Create the routes; `max_bytes` is the limit of an uploaded checkpoint."""
    routes = Blueprint("models", __name__, url_prefix="/models")

    @routes.get("")
    def listing() -> Response:
        try:
            checkpoints = registry.list_checkpoints(folder)
        except CheckpointError as e:
            raise ModelConflict(str(e)) from e
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
            raise ModelConflict(str(e)) from e
        return jsonify(promoted=file_format.read_info(path).as_dict())

    @routes.get("/<model_id:model_id>/file")
    def download(model_id: str) -> Response:
        path = registry.find(folder, model_id)
        if path is None:
            raise UnknownModel(f"{model_id}: no such model; GET /models lists all")
        return send_file(path.resolve(), BINARY, as_attachment=True, download_name=path.name, etag=model_id)

    @routes.put("/<model_id:model_id>/file")
    def upload(model_id: str) -> tuple[Response, int]:
        """Store the body, which is read as it arrives and no further than the limit; it is not promoted."""
        if request.mimetype != BINARY:
            raise WrongMediaType("Content-Type", request.mimetype, BINARY)
        request.max_content_length = max_bytes
        try:
            body = StreamedBody(request.stream, request.content_length)  # refuses a Content-Length beyond the limit
            stored, is_new = store_upload(folder, model_id, body.read, max_bytes)
        except RequestEntityTooLarge as e:
            raise BodyTooLarge(max_bytes, request.content_length) from e
        return jsonify(stored.as_dict()), 201 if is_new else 200

    @routes.delete("/<model_id:model_id>/file")
    def delete(model_id: str) -> Response:
        """Delete a checkpoint that is neither promoted nor what a rollback promotes."""
        try:
            if not registry.remove(folder, model_id):
                raise UnknownModel(f"{model_id}: no such model; GET /models lists all")
        except (CheckpointError, StorageError) as e:
            raise ModelConflict(str(e)) from e
        return no_content()

    @routes.post("/rollback")
    def rollback() -> Response:
        read_body(EmptyBody)
        try:
            version = registry.promotion_version(folder)
            path = change_promotion(promotions, version, partial(registry.roll_back, folder))
        except (CheckpointError, StorageError) as e:
            raise ModelConflict(str(e)) from e
        return jsonify(promoted=file_format.read_info(path).as_dict())

    return routes


def _current(manager: ModelManager) -> dict[str, str] | None:
    try:
        return manager.current.as_dict()
    except NoModel:
        return None
