"""Checkpoints as files, by id or by their model's name, as pages that need no server, and what they learned."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

from flask import Blueprint, Response, jsonify, request, send_file
from werkzeug.exceptions import RequestEntityTooLarge

from model.checkpoints import file_format, registry
from model.errors import CheckpointError, ConfigError, StorageError
from model.export.page.render import to_page
from service.errors import BodyTooLarge, ModelConflict, UnknownModel, UnknownReport, WrongMediaType
from service.models.named_models import unknown_model
from service.models.stores.model_stores import ModelStores
from service.models.stores.uploads import store_upload
from service.routes.arguments import model_name_argument
from service.routes.body import StreamedBody, no_content

BINARY = "application/octet-stream"
_REPORT_HEADERS = {
    # Whoever wrote the file, it runs nothing and loads nothing.
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def blueprint(stores: ModelStores, max_bytes: int) -> Blueprint:
    """Create the routes; `max_bytes` is the limit of an uploaded checkpoint."""
    routes = Blueprint("model_files", __name__, url_prefix="/models")

    @routes.get("/<model_id:model_id>/file")
    def download(model_id: str) -> Response:
        return _file(find(model_id))

    @routes.get("/<model_name:model_name>/checkpoint")
    def download_promoted(model_name: str) -> Response:
        """The promoted checkpoint of a model."""
        return _file(_promoted(stores, model_name))

    @routes.get("/<model_id:model_id>/page")
    def page(model_id: str) -> Response:
        """A page that writes with the model by itself, offline."""
        path = find(model_id)
        try:
            checkpoint = file_format.load(path)
            content = to_page(checkpoint, checkpoint.corpus or path.stem)
        except (CheckpointError, ConfigError) as e:
            raise ModelConflict.of(e, path.parent) from e
        return send_file(BytesIO(content), "text/html", as_attachment=True, download_name=f"{path.stem}-page.html")

    @routes.get("/<model_id:model_id>/report")
    def report(model_id: str) -> Response:
        """The report that the model's job made at its end, or `python -m model report` since then."""
        path = find(model_id)
        try:
            data = registry.report_path(path).read_bytes()
        except FileNotFoundError as e:
            raise UnknownReport(
                f"no report on {path.name} has been made: a training makes one at its end; "
                f"`python -m model report` makes one of any model"
            ) from e
        except OSError as e:
            raise StorageError(f"cannot be read ({e.strerror})", field=registry.report_path(path).name) from e
        response = Response(data, mimetype="text/html", headers=_REPORT_HEADERS)
        response.set_etag(hashlib.sha256(data).hexdigest()[:32])
        response.make_conditional(request)
        return response

    @routes.put("/<model_id:model_id>/file")
    def upload(model_id: str) -> tuple[Response, int]:
        """Store the body as a checkpoint of this id; it is not promoted."""
        return _receive(stores.folder(model_name_argument()), model_id, max_bytes)

    @routes.put("/<model_name:model_name>")
    def upload_into(model_name: str) -> tuple[Response, int]:
        """Store the body as a checkpoint of a model, which need not exist before; it is not promoted."""
        return _receive(stores.folder(model_name), None, max_bytes)

    @routes.delete("/<model_id:model_id>/file")
    def delete(model_id: str) -> Response:
        """Delete a checkpoint that is neither promoted nor what a rollback promotes."""
        folder = stores.folder(model_name_argument())
        try:
            if not folder.is_dir() or not registry.remove(folder, model_id):
                raise _unknown(model_id)
        except (CheckpointError, StorageError) as e:
            raise ModelConflict.of(e, folder) from e
        return no_content()

    def find(model_id: str) -> Path:
        path = stores.find(model_id)
        if path is None:
            raise _unknown(model_id)
        return path

    return routes


def _receive(folder: Path, model_id: str | None, max_bytes: int) -> tuple[Response, int]:
    """Read the body as it arrives, and no further than the limit."""
    if request.mimetype != BINARY:
        raise WrongMediaType("Content-Type", request.mimetype, BINARY)
    request.max_content_length = max_bytes
    try:
        body = StreamedBody(request.stream, request.content_length)  # refuses a Content-Length beyond the limit
        stored, is_new = store_upload(folder, model_id, body.read, max_bytes)
    except RequestEntityTooLarge as e:
        raise BodyTooLarge(max_bytes, request.content_length) from e
    return jsonify(stored.as_dict()), 201 if is_new else 200


def _promoted(stores: ModelStores, name: str) -> Path:
    """Return the promoted checkpoint of a model."""
    folder = stores.folder(name)
    try:
        path = registry.promoted_path(folder)
        if path is not None:
            stores.info(path)  # that it can be used
            return path
    except CheckpointError as e:
        raise ModelConflict.of(e, folder) from e
    if stores.exists(name):
        raise UnknownModel(f"no checkpoint of the model {name!r} has been promoted yet")
    raise unknown_model(stores, name)


def _file(path: Path) -> Response:
    """Send a file. Its ETag is of the file: a model may have several, of which a download must not be a mixture."""
    return send_file(path.resolve(), BINARY, as_attachment=True, download_name=path.name)


def _unknown(model_id: str) -> UnknownModel:
    return UnknownModel(f"{model_id}: no such model; GET /models lists all")
