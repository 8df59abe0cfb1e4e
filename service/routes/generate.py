"""POST /generate: a prompt and parameters in, text out, whole or as it is generated."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, g, jsonify, request

from service.errors import BadRequest
from service.generation.service import GenerationService
from service.routes.body import read_body
from service.routes.generation_events import POLL_INTERVAL_S, GenerationEvents
from service.routes.sse import client_disconnect_check, event_stream_response
from service.schemas import GenerateRequest

_IDEMPOTENCY_KEY = r"[\x21-\x7e]{16,128}"
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client has left."""


def blueprint(generation: GenerationService) -> Blueprint:
    """Create the route."""
    routes = Blueprint("generate", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        body, key = read_body(GenerateRequest), _idempotency_key()
        is_disconnected = client_disconnect_check()
        running = generation.generate(body, key, g.get("key_id", ""))
        if body.stream:
            return event_stream_response(GenerationEvents(running, is_disconnected))
        try:
            text, logprobs = [], list[dict[str, Any]]()
            for chunk in running.chunks(POLL_INTERVAL_S):
                if is_disconnected():
                    return Response(status=_CLIENT_CLOSED_REQUEST)
                if chunk is not None:
                    text.append(chunk.text)
                    logprobs += chunk.token_logprobs or []
            with_logprobs = {"logprobs": logprobs} if running.has_logprobs else {}
            return jsonify({"text": "".join(text), **with_logprobs, **running.finish().as_dict()})
        finally:
            running.close()

    return routes


def _idempotency_key() -> str:
    """The header's value; empty without it. A short key could be sent by another client by chance."""
    key = request.headers.get("Idempotency-Key", "")
    if key and not re.fullmatch(_IDEMPOTENCY_KEY, key):
        raise BadRequest("Idempotency-Key", key, "16 to 128 visible characters that no other client sends, like a UUID")
    return key
