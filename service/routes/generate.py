"""POST /generate: a prompt and parameters in, text out, whole or as it is written."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest
from service.generation.generation import Generation
from service.routes import body
from service.routes.sse import LOOK_S, EventStream, reader_watch
from service.schemas import GenerateRequest

_KEY = r"[\x21-\x7e]{16,128}"


def blueprint(generation: Generation) -> Blueprint:
    routes = Blueprint("generate", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        wanted = body.read(GenerateRequest)
        reader_is_gone = reader_watch()
        turn = generation.open(wanted, _idempotency_key())
        if wanted.stream:
            return EventStream(turn, reader_is_gone).response()
        try:
            text, looks = [], list[dict[str, Any]]()
            for piece in turn.pieces(LOOK_S):
                if reader_is_gone():
                    return Response(status=499)  # the field's number for an answer that nobody reads
                if piece is not None:
                    text.append(piece.text)
                    looks += piece.looks or []
            told = {"logprobs": looks} if turn.looks is not None else {}
            return jsonify({"text": "".join(text), **told, **turn.finish().as_dict()})
        finally:
            turn.close()

    return routes


def _idempotency_key() -> str:
    """Raised: BadRequest for a key that could be someone else's, too."""
    key = request.headers.get("Idempotency-Key", "")
    if key and not re.fullmatch(_KEY, key):
        raise BadRequest(
            f"Idempotency-Key: got {key[:80]!r}, expected 16 to 128 visible characters that nobody else sends: a UUID",
            field="Idempotency-Key", value=key[:80], expected="16 to 128 visible characters",
        )  # fmt: skip
    return key
