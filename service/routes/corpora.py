"""PUT, GET and DELETE /corpora/{name}: store, list and delete texts. POST /preview: describe one without storing it."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import RequestEntityTooLarge

from model.errors import ConfigError
from model.text.items.layout import ItemLayout, unescape
from service.errors import BadRequest, BodyTooLarge, WrongMediaType
from service.routes.body import StreamedBody, no_content
from service.store.corpora import MAX_PREVIEW_BYTES, Corpora

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
"""What `curl -F` and `curl -d` send: an envelope around the text, or the text without its line ends."""

_BOOLEANS = {"true": True, "false": False}


def blueprint(corpora: Corpora, max_bytes: int) -> Blueprint:
    """Return the routes; `max_bytes` is the limit of one corpus."""
    routes = Blueprint("corpora", __name__)

    @routes.get("/corpora")
    def listing() -> Response:
        return jsonify(corpora=corpora.listing())

    @routes.post("/preview")
    def preview() -> Response:
        """Describe the body as `put` would, and store nothing."""
        _check_media_type()
        request.max_content_length = limit = min(max_bytes, MAX_PREVIEW_BYTES)
        values = dict(request.args)
        name = values.pop("name", "text")
        layout = _layout(values)
        try:
            body = StreamedBody(request.stream, request.content_length)
            return jsonify(corpora.preview(name, body.read, layout).as_dict())
        except RequestEntityTooLarge as e:
            raise BodyTooLarge(limit, request.content_length) from e

    @routes.put("/corpora/<corpus_name:name>")
    def put(name: str) -> tuple[Response, int, dict[str, str]]:
        """Store the body, which is read as it arrives and no further than the limit."""
        _check_media_type()
        request.max_content_length = max_bytes
        only_new = request.headers.get("If-None-Match") == "*"
        layout = _layout(dict(request.args))
        try:
            body = StreamedBody(request.stream, request.content_length)  # refuses a Content-Length beyond the limit
            stored, is_new = corpora.put(name, body.read, only_new=only_new, layout=layout)
        except RequestEntityTooLarge as e:
            raise BodyTooLarge(max_bytes, request.content_length) from e
        return jsonify(stored.as_dict()), 201 if is_new else 200, {"Location": f"{request.script_root}/corpora/{name}"}

    @routes.get("/corpora/<corpus_name:name>")
    def get(name: str) -> Response:
        return jsonify(corpora.get(name).as_dict())

    @routes.delete("/corpora/<corpus_name:name>")
    def delete(name: str) -> Response:
        corpora.delete(name)
        return no_content()

    return routes


def _check_media_type() -> None:
    if request.mimetype in _FORMS:
        curl = f"curl -T FILE {request.url}"
        expected = f"the text itself, as text/plain or without a Content-Type: {curl}"
        raise WrongMediaType("Content-Type", request.mimetype, expected)


def _layout(values: dict[str, Any]) -> ItemLayout | None:
    """Read from the query how the items of a list lie; None: the query says nothing.

    Raises:
        BadRequest: A parameter has a value that is not accepted, contradicts another one, or does not exist.
    """
    try:
        if "max_item_chars" in values and re.fullmatch(r"[0-9]{1,9}", values["max_item_chars"]):
            values["max_item_chars"] = int(values["max_item_chars"])
        if values.get("novelty") in _BOOLEANS:
            values["novelty"] = _BOOLEANS[values["novelty"]]
        if "separator" in values:
            if not values["separator"]:
                raise BadRequest("separator", "", "at least one character")
            values = {"items": "separator", **values, "separator": unescape(values["separator"])}
        return ItemLayout.from_dict(values) if values else None
    except ConfigError as e:
        raise BadRequest(e.field, values.get(e.field), e.expected, problem=e.problem) from e
