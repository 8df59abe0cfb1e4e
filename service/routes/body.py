"""Read the body of the current request, within its limit, and validate it."""

from __future__ import annotations

from typing import TypeVar

from flask import current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import BodyTooLarge, WrongMediaType
from service.schemas import Body, parse_body

BodyT = TypeVar("BodyT", bound=Body)


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
        size = request.content_length
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        got = f"{size} bytes" if size is not None else "more"
        raise BodyTooLarge("body", size, f"at most {limit} bytes", problem=f"got {got}") from e
    return parse_body(schema, data)
