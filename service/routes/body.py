"""Read the body of the current request, within its limit, and validate it."""

from __future__ import annotations

import re
from typing import IO, TypeVar

from flask import Response, current_app, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

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


class StreamedBody:
    """A request body that raises an error if it ends early. The server reports no error, and half a text is a text."""

    def __init__(self, stream: IO[bytes], length: int | None) -> None:
        """Read a stream of a known length; None: it ends with its last chunk."""
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
