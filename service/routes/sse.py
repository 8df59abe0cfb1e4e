"""Server-sent events: the one encoder, the response, and how a client that has left is noticed.

Encoding follows the WHATWG specification of EventSource: `id`, `event` and `data` lines, an empty line at the end;
a line that begins with a colon is a comment.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flask import Response, request
from pydantic_core import to_json

from service.errors import ClientDisconnected, ServiceError

HEARTBEAT_S = 5.0
HEARTBEAT = b": waiting\n\n"
"""A comment. Proxies close a connection on which nothing is sent for a while."""
_PUSH = b""
"""Has the server send what it has collected of the response."""
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_PEEK_INTERVAL_S = 0.1
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def encode_event(data: Mapping[str, Any], *, name: str | None = None, id: int | str | None = None) -> bytes:
    """Encode one event; `name` None is an event of the default type, "message"."""
    id_line = f"id: {id}\n" if id is not None else ""
    return b"%s%s%s\n\n" % (id_line.encode(), _begin(name), to_json(data))  # a quarter of the json module's time


def encode_rows(columns: Mapping[str, Sequence[Any]], *, name: str | None = None) -> bytes:
    """Encode an event for each row of a table, in two thirds of the time that they take one by one.

    Args:
        columns: Of equal lengths, by their names: the data of the i-th event has the i-th value of each.
        name: Of all events; None: "message".
    """
    n_rows, n_pieces = len(next(iter(columns.values()))), 2 * len(columns) + 1
    pieces = [b"}\n\n"] * (n_rows * n_pieces)
    before = _begin(name) + b"{"
    for i, (key, values) in enumerate(columns.items()):
        pieces[2 * i :: n_pieces] = [b"%s%s:" % (before, to_json(key))] * n_rows
        pieces[2 * i + 1 :: n_pieces] = _encode_each(values)
        before = b","
    return b"".join(pieces)


def _begin(name: str | None) -> bytes:
    return f"event: {name}\ndata: ".encode() if name is not None else b"data: "


def _encode_each(values: Sequence[Any]) -> list[bytes]:
    """Encode values that are no lists or objects; in JSON with line breaks, each has a line of its own."""
    return to_json(list(values), indent=1)[3:-2].split(b",\n ") if values else []


def encode_error_event(error: ServiceError) -> bytes:
    """Encode the last event of a stream that ends in an error."""
    return encode_event({"error": error.as_dict()}, name="error")


def event_stream_head() -> Response:
    """Return the response to HEAD: the headers of a stream, which is not started. HEAD must change nothing."""
    return Response(mimetype="text/event-stream", headers=_HEADERS)


class ClientConnection:
    """The connection of the current request: whether its client has left while the response is made.

    It peeks at the socket, at most ten times a second; without it, a closed connection shows at the second write only.
    A client that has closed only its sending side looks the same as one that is gone, until something is sent: the
    system of one that is gone refuses it. So something is sent then: to a stream a comment (`should_probe`), else the
    interim response 100, which HTTP/1.1 clients skip.
    """

    def __init__(self, *, is_stream: bool) -> None:
        """Watch the connection of the current request.

        Args:
            is_stream: Whether the response is a stream; then the caller sends a comment when `should_probe` says so.
        """
        self._socket: socket.socket | None = request.environ.get("gunicorn.socket")
        self._may_send_interim = not is_stream and request.environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
        self._last_peek = 0.0
        self._is_half_closed = False
        self._is_probe_due = False

    def has_left(self) -> bool:
        """Whether the client has closed the connection."""
        now = time.monotonic()
        if self._socket is None or now - self._last_peek < _PEEK_INTERVAL_S:
            return False
        self._last_peek = now
        try:
            is_open = self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
            if not is_open and not self._is_half_closed:
                self._is_half_closed = self._is_probe_due = True
                if self._may_send_interim:
                    self._socket.sendall(_INTERIM)
        except BlockingIOError:
            return False
        except OSError:
            return True
        # After the client's FIN a read says "end" for ever, also when the system of a client that is gone has refused.
        return self._is_half_closed and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def check(self) -> None:
        """Check that somebody waits for the response.

        Raises:
            ClientDisconnected: The client has closed the connection.
        """
        if self.has_left():
            raise ClientDisconnected

    def should_probe(self) -> bool:
        """Whether a comment is to be sent now, once, to learn whether anybody still reads."""
        is_due, self._is_probe_due = self._is_probe_due, False
        return is_due


class _LiveEvents:
    """The body of an event stream. The server calls `close` however the response ends, also if it never began."""

    def __init__(
        self,
        events: Iterator[bytes | None],
        client: ClientConnection,
        close: Callable[[], None],
        encode_error: Callable[[ServiceError], bytes],
    ) -> None:
        """Take the arguments of `event_stream_response`."""
        self._events = events
        self._client = client
        self._encode_error = encode_error
        self._close: Callable[[], None] | None = close

    def close(self) -> None:
        """End what makes the events. Idempotent."""
        close, self._close = self._close, None
        if close is not None:
            close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the events, and comments while there are none; to be called once."""
        last_sent, is_pushed = time.monotonic(), False
        try:
            for event in self._events:
                if self._client.has_left():
                    return
                now = time.monotonic()
                if self._client.should_probe() or (event is None and now - last_sent > HEARTBEAT_S):
                    yield HEARTBEAT
                    last_sent, is_pushed = now, False
                if event is not None:
                    yield event
                    last_sent, is_pushed = now, False
                elif not is_pushed:
                    yield _PUSH
                    is_pushed = True
        except ServiceError as e:
            yield self._encode_error(e)


def event_stream_response(
    events: Iterator[bytes | None],
    client: ClientConnection,
    close: Callable[[], None],
    encode_error: Callable[[ServiceError], bytes] = encode_error_event,
) -> Response:
    """Return the response that streams events as long as the client is there, and comments while there are none.

    Args:
        events: The encoded events, and None before each time that the next one has to be waited for: then what there
            is, is sent.
        client: Watched; the events end when it has left.
        close: Ends what makes the events. It is called once, however the response ends, also if it is never begun.
        encode_error: Encodes the last event of a stream that ends in an error.
    """
    try:
        return Response(
            _LiveEvents(events, client, close, encode_error), mimetype="text/event-stream", headers=_HEADERS
        )
    except BaseException:
        close()
        raise
