"""One client's connection: a socket that never blocks a thread, and what is to be read from and written to it."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Protocol, Self

from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.unreader import SocketUnreader
from werkzeug.exceptions import BadRequest, RequestTimeout

from service.server.request_buffer import RequestBuffer

RECV_BYTES = 64 * 1024
CORKED_BYTES = 16 * 1024
"""So many bytes of small pieces are collected at most before they are sent."""


class Stalled(OSError):
    """The client sent nothing, or too little, for too long."""


class State(Enum):
    """Who has the connection."""

    READING = "reading"  # the poller: a request is arriving, or is awaited on a kept connection
    QUEUED = "queued"  # the queue before the threads: the request is whole
    RUNNING = "running"  # a thread
    WRITING = "writing"  # the poller: a response is waiting for the client to read
    CLOSING = "closing"  # the poller: all is written, the client has to close


class ClientSocket(socket.socket):
    """A non-blocking socket that keeps what the client does not read yet.

    `sendall` never blocks: what the system does not take at once is kept in `unsent`, and the poller sends it on.
    Between `cork` and `uncork`, it collects small pieces, which `push` sends together: each call of the system also
    gives Python's lock away, and takes longer to get it back than to send.
    """

    unsent: bytearray
    _corked: bytearray | None  # None: pieces are not collected

    @classmethod
    def adopt(cls, accepted: socket.socket) -> Self:
        """Take an accepted socket over."""
        ours = cls(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        ours.setblocking(False)
        ours.unsent, ours._corked = bytearray(), None
        return ours

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send what the system takes now, and keep the rest; a small piece may wait for `push`.

        Raises:
            OSError: The client is gone.
        """
        if self._corked is not None:
            if len(self._corked) + len(data) <= CORKED_BYTES:
                self._corked += data
                return
            self.push()
        self._send(data, flags)

    def cork(self) -> None:
        """Collect the small pieces from now on."""
        self._corked = bytearray()

    def push(self) -> None:
        """Send the pieces that were collected, and collect others.

        Raises:
            OSError: The client is gone.
        """
        if self._corked:
            data, self._corked = self._corked, bytearray()
            self._send(data)

    def uncork(self) -> None:
        """Send the pieces that were collected, and collect no more.

        Raises:
            OSError: The client is gone.
        """
        data, self._corked = self._corked, None
        if data:
            self._send(data)

    def _send(self, data: Any, flags: int = 0) -> None:
        if self.unsent:
            self.unsent += data
            return
        view = memoryview(data)
        while view:
            try:
                sent = self.send(view, flags)
            except BlockingIOError:
                self.unsent += view
                return
            view = view[sent:]

    def flush(self) -> int:
        """Send of `unsent` what the system takes now.

        Returns:
            The number of bytes that were sent.

        Raises:
            OSError: The client is gone.
        """
        total = 0
        while self.unsent:
            try:
                sent = self.send(memoryview(self.unsent)[: 256 * 1024])
            except BlockingIOError:
                break
            del self.unsent[:sent]
            total += sent
        return total


class BodyReader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """Reads a long body in its request's thread, within a time that its length allows."""

    def __init__(self, sock: ClientSocket, *, idle_s: float, grace_s: float, min_bytes_per_s: int) -> None:
        """Bound the time that a client may take.

        Args:
            sock: The connection's socket.
            idle_s: Seconds without a byte after which the client has stalled.
            grace_s: Seconds after which the mean rate counts.
            min_bytes_per_s: The smallest mean rate.
        """
        super().__init__(sock)
        self._idle_s, self._grace_s, self._rate = idle_s, grace_s, min_bytes_per_s
        self._started = time.monotonic()
        self._received = 0

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return the next bytes.

        Raises:
            Stalled: Nothing came for idle_s, or all of it comes too slowly.
        """
        elapsed = time.monotonic() - self._started
        if elapsed > self._grace_s + self._received / self._rate:
            raise Stalled(f"the request's body comes at less than {self._rate} bytes a second")
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(self._idle_s * 1000):
            raise Stalled(f"nothing of the request's body came for {self._idle_s:g} s")
        data: bytes = super().chunk(size_hint)
        self._received += len(data)
        return data


class RequestBody:
    """`wsgi.input` whose errors the application answers: 408 for a body that stalls, 400 for one that is malformed."""

    def __init__(self, body: Any) -> None:
        """Wrap gunicorn's body."""
        self._body = body

    def read(self, size: int | None = None) -> bytes:
        """Return up to `size` bytes, b"" at the end.

        Raises:
            RequestTimeout: The body did not arrive in time.
            BadRequest: The body is not valid HTTP, or ended too early.
        """
        try:
            data: bytes = self._body.read(size)
        except Stalled as e:
            raise RequestTimeout(str(e)) from e
        except (ParseException, NoMoreData) as e:
            raise BadRequest(f"the request's body is not valid HTTP: {e}") from e
        return data

    def readline(self, size: int | None = None) -> bytes:
        """Return the next line, or a part of it; raises what `read` does."""
        line = b""
        while not line.endswith(b"\n") and (size is None or size < 0 or len(line) < size):
            byte = self.read(1)
            if not byte:
                break
            line += byte
        return line

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over lines."""
        return iter(self.readline, b"")


class WsgiResponse(Protocol):
    """What is used of gunicorn's Response."""

    headers_sent: bool

    def send_headers(self) -> None:
        """Send the head, if it has not been sent."""

    def write(self, data: bytes) -> None:
        """Send a part of the body, after the head."""

    def close(self) -> None:
        """Send what ends the response."""

    def force_close(self) -> None:
        """Announce that the connection ends after this response."""

    def should_close(self) -> bool:
        """Whether the connection ends after this response."""


@dataclass(slots=True)
class Exchange:
    """A request whose response is being written."""

    request: Any
    response: WsgiResponse
    environ: dict[str, Any]
    body: Any  # the application's iterable, with or without a `close`
    parts: Iterator[bytes]
    started: datetime
    is_written: bool = False  # the application has given all of it


@dataclass(slots=True, eq=False)
class Connection:
    """A client's connection, handed from the poller to a thread and back; one of them has it at a time."""

    sock: ClientSocket
    client: Any
    server: Any
    parser: Any
    buffer: RequestBuffer
    deadline: float  # time.monotonic() at which the present state must have ended
    state: State = State.READING
    is_kept: bool = False  # a request has been answered on it before
    is_streamed: bool = False  # the request's body is read by its thread
    exchange: Exchange | None = None
    since: float = 0.0  # time.monotonic() at which the present state began
    written: int = 0  # bytes that the poller has sent since then
    drained: int = 0  # bytes that were thrown away while closing
