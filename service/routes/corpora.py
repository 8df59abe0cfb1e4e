"""PUT, GET and DELETE /corpora/{name}: upload, list and delete training texts. POST /preview: look at one."""

from __future__ import annotations

import re
from typing import IO, Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from model.errors import ConfigError
from model.text.items.layout import ItemLayout, unescape
from service.errors import BadRequest, BodyTooLarge, WrongMediaType
from service.routes.body import no_content
from service.store.corpora import Corpora

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
        request.max_content_length = max_bytes
        values = dict(request.args)
        name = values.pop("name", "text")
        layout = _layout(values)
        try:
            return jsonify(corpora.preview(name, _Body(request.stream, request.content_length).read, layout).as_dict())
        except RequestEntityTooLarge as e:
            raise BodyTooLarge(max_bytes, request.content_length) from e

    @routes.put("/corpora/<corpus_name:name>")
    def put(name: str) -> tuple[Response, int, dict[str, str]]:
        """Store the body, which is read as it arrives and no further than the limit."""
        _check_media_type()
        request.max_content_length = max_bytes
        only_new = request.headers.get("If-None-Match") == "*"
        layout = _layout(dict(request.args))
        try:
            body = _Body(request.stream, request.content_length)  # refuses a Content-Length beyond the limit
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
            values = {"items": "separator", **values, "separator": unescape(values["separator"])}
        return ItemLayout.from_dict(values) if values else None
    except ConfigError as e:
        raise BadRequest(e.field, values.get(e.field), e.expected, problem=e.problem) from e


class _Body:
    """A request body that raises an error if it ends early. The server reports no error, and half a text is a text."""

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        self._stream, self._length = stream, length
        self._read = 0

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end.

        Raises:
            BadRequest: The client disconnected before the end.
        """
        try:
            data = self._stream.read(size)
        except (OSError, ClientDisconnected) as e:
            raise self._incomplete() from e
        self._read += len(data)
        if not data and self._length is not None and self._read < self._length:
            raise self._incomplete()
        return data

    def _incomplete(self) -> BadRequest:
        expected = f"{self._length} bytes" if self._length is not None else "a last chunk"
        problem = f"ended after {self._read} bytes, so nothing was stored"
        return BadRequest("body", self._read, expected, problem=problem)
