"""The body of a request, within its limit, as its schema."""

from __future__ import annotations

from typing import TypeVar

from flask import current_app, request
from werkzeug.exceptions import RequestEntityTooLarge

from service.errors import BodyTooLarge, WrongMediaType
from service.schemas import Body, parse

B = TypeVar("B", bound=Body)


def read(kind: type[B]) -> B:
    """Raised: WrongMediaType, BodyTooLarge, MalformedBody, BadRequest."""
    limit = current_app.config["MAX_CONTENT_LENGTH"]
    if request.mimetype != "application/json":
        # Any page in a browser may send the other types to any address without asking; this one it may not.
        raise WrongMediaType(
            f"Content-Type: got {request.mimetype!r}, expected 'application/json'",
            field="Content-Type", value=request.mimetype, expected="application/json",
        )  # fmt: skip
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge as e:
        size = request.content_length
        raise BodyTooLarge(
            f"body: got {size if size is not None else 'more than'} bytes, expected at most {limit}",
            field="body", value=size, expected=f"at most {limit} bytes",
        ) from e  # fmt: skip
    return parse(kind, data)
