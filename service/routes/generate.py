"""POST /generate: a prompt and parameters in, text out, whole or as it is written."""

from __future__ import annotations

import socket
from collections.abc import Callable

from flask import Blueprint, Response, jsonify, request

from service.generation import Generation
from service.routes import body
from service.routes.sse import LOOK_S, EventStream
from service.schemas import GenerateRequest


def blueprint(generation: Generation) -> Blueprint:
    routes = Blueprint("generate", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        wanted = body.read(GenerateRequest)
        reader_is_gone = _reader_watch(request.environ.get("gunicorn.socket"))
        turn = generation.open(wanted)
        if wanted.stream:
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return Response(EventStream(turn, reader_is_gone), mimetype="text/event-stream", headers=headers)
        try:
            text = []
            for piece in turn.pieces(LOOK_S):
                if reader_is_gone():
                    return Response(status=499)  # the field's number for an answer that nobody reads
                if piece is not None:
                    text.append(piece.text)
            return jsonify({"text": "".join(text), **turn.finish().as_dict()})
        finally:
            turn.close()

    return routes


def _reader_watch(connection: socket.socket | None) -> Callable[[], bool]:
    """A look at whether the client has hung up. Without it, that would show only when a write fails."""

    def gone() -> bool:
        if connection is None:
            return False
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    return gone
