"""Read the body of the current request, within its limit, and validate it."""

from __future__ import annotations

import re
from typing import TypeVar

from flask import Response, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import BadRequest, BodyTooLarge, WrongMediaType
from service.schemas import Body, parse_body

BodyT = TypeVar("BodyT", bound=Body)
_IDEMPOTENCY_KEY = r"[\x21-\x7e]{16,128}"


def idempotency_key() -> str:
    """Return the value of the current request's Idempotency-Key header; empty without it.

    Raises:
        BadRequest: It is so short that another client could send it by chance, or too long.
    """
    key = request.headers.get("Idempotency-Key", "")
    if key and not re.fullmatch(_IDEMPOTENCY_KEY, key):
        raise BadRequest("Idempotency-Key", key, "16 to 128 visible characters that no other client sends, like a UUID")
    return key


def no_content() -> Response:
    """Return a response without a body: 204."""
    response = Response(status=204)
    del response.headers["Content-Type"]
    return response


def read_body(schema: type[BodyT]) -> BodyT:
    """Return the body of the current request.

    Raises:
        WrongMediaType: The body is not application/json.
        BodyTooLarge: The body is longer than MAX_BODY_BYTES.
        MalformedBody: The body is not a JSON object.
        BadRequest: A field has a value that is not accepted.
    """
    if request.mimetype != "application/json":
        # A page of another origin may send other types to any address without the browser asking us first.
        raise WrongMediaType("Content-Type", request.mimetype, "application/json")
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge as e:
        raise BodyTooLarge(current_app.config["MAX_CONTENT_LENGTH"], request.content_length) from e
    return parse_body(schema, data)
