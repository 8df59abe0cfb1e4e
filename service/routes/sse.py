"""A turn as server-sent events: bytes that a browser's EventSource understands.

event: start   data: session_id, position, seed, model       once, before any text
id: POSITION   data: {"text"}, and "logprobs" if asked for    one a block; the id is the position after it
: ...                                                        a comment, when nothing was written for a while
event: done    data: as a JSON answer, less its text          the end
event: error   data: {"error": {"code", "message"}}          or this end: the status was already sent
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, request

from service.errors import ServiceError
from service.generation.turn import Turn

HEARTBEAT_S = 5.0
LOOK_S = 0.25  # how often an idle stream looks whether its reader is still there
BUSY_LOOK_S = 0.1  # and a busy one, which would notice by its second write, at most


_json = json.JSONEncoder(ensure_ascii=False).encode  # made once: json.dumps makes one a call unless all is default


def event(data: dict[str, Any], *, name: str | None = None, id: int | None = None) -> bytes:
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {name}\n" if name is not None else "")
    return f"{head}data: {_json(data)}\n\n".encode()


class EventStream:
    """The body of a streamed answer. Its `close` is called by the server however the stream ends, begun or not."""

    def __init__(self, turn: Turn, reader_is_gone: Callable[[], bool]) -> None:
        self._turn = turn
        self._reader_is_gone = reader_is_gone
        self._events = self._make()

    def response(self) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Response(self, mimetype="text/event-stream", headers=headers)

    def __iter__(self) -> EventStream:
        return self

    def __next__(self) -> bytes:
        return next(self._events)

    def close(self) -> None:
        self._turn.close()

    def _make(self) -> Iterator[bytes]:
        turn = self._turn
        yield event(turn.opening(), name="start")
        last_sent = time.monotonic()
        try:
            for piece in turn.pieces(LOOK_S):
                if self._reader_is_gone():
                    return
                if piece is not None:
                    told = {"logprobs": piece.looks} if piece.looks is not None else {}
                    yield event({"text": piece.text, **told}, id=piece.position)
                    last_sent = time.monotonic()
                elif time.monotonic() - last_sent > HEARTBEAT_S:
                    yield b": waiting\n\n"
                    last_sent = time.monotonic()
            yield event(turn.finish().as_dict(), name="done")
        except ServiceError as e:
            yield event({"error": e.as_dict()}, name="error")


def reader_watch() -> Callable[[], bool]:
    """A look at whether the client has hung up. Without it, that would show only when a write fails."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    looked = 0.0

    def gone() -> bool:
        nonlocal looked
        now = time.monotonic()
        if connection is None or now - looked < BUSY_LOOK_S:
            return False
        looked = now
        try:
            return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    return gone
