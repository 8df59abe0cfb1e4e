"""A client's socket: what is collected, what is sent at once, and what waits for a client that does not read."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from service.server.connection import CORKED_BYTES, ClientSocket, Connection, Exchange
from service.server.request_buffer import RequestBuffer
from service.server.worker import BufferedThreadWorker


class CountingSocket(ClientSocket):
    n_sent = 0

    def send(self, data: Any, flags: int = 0) -> int:
        self.n_sent += 1
        return super().send(data, flags)


@pytest.fixture
def pair() -> Iterator[tuple[CountingSocket, socket.socket]]:
    ours, client = socket.socketpair()
    with client, CountingSocket.adopt(ours) as ours:
        yield ours, client


def test_small_pieces_are_sent_together(pair: tuple[CountingSocket, socket.socket]) -> None:
    """The head, the events that are there and the end of a response are one call of the system."""
    ours, client = pair
    ours.cork()
    for piece in (b"head ", b"start ", b"text "):
        ours.sendall(piece)
    assert ours.n_sent == 0
    ours.push()
    assert (client.recv(1000), ours.n_sent) == (b"head start text ", 1)
    ours.push()  # there is nothing
    for piece in (b"done ", b"end"):
        ours.sendall(piece)
    ours.uncork()
    assert (client.recv(1000), ours.n_sent) == (b"done end", 2)
    ours.sendall(b"at once")
    assert client.recv(1000) == b"at once"


def test_a_large_piece_follows_what_was_collected(pair: tuple[CountingSocket, socket.socket]) -> None:
    """In order, and without waiting for a push."""
    ours, client = pair
    ours.cork()
    ours.sendall(b"head")
    ours.sendall(b"x" * (CORKED_BYTES + 1))
    assert client.recv(4 * CORKED_BYTES, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"head" + b"x" * (
        CORKED_BYTES + 1
    )


def test_what_a_client_does_not_read_is_kept_in_order(pair: tuple[CountingSocket, socket.socket]) -> None:
    """Pieces that are collected come after what waits already; the flush sends all of it."""
    ours, client = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pieces = [bytes([i]) * 10_000 for i in range(100)]
    ours.cork()
    for piece in pieces:
        ours.sendall(piece)
        ours.push()
    assert ours.unsent
    ours.uncork()
    received = bytearray()
    while len(received) < 1_000_000:
        received += client.recv(1 << 20)
        ours.flush()
    assert received == b"".join(pieces)
    assert not ours.unsent


def test_a_client_that_is_gone_is_an_error(pair: tuple[CountingSocket, socket.socket]) -> None:
    """At the push, if not before."""
    ours, client = pair
    client.close()
    ours.cork()
    ours.sendall(b"head")
    with pytest.raises(BrokenPipeError):
        ours.push()


class Response:
    """A response whose head has been sent."""

    headers_sent, is_closing = True, False

    def __init__(self, sock: ClientSocket) -> None:
        self.write = sock.sendall

    def force_close(self) -> None:
        self.is_closing = True


def test_a_bug_is_logged_also_when_the_client_is_gone(
    pair: tuple[CountingSocket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    """What was collected cannot be sent any more; that error does not take the place of the other."""
    ours, client = pair

    def parts() -> Iterator[bytes]:
        yield b"text"
        client.close()
        raise RuntimeError("a bug")

    connection = Connection(ours, None, None, None, RequestBuffer(1), 0.0)
    response = Response(ours)
    connection.exchange = Exchange(None, response, {}, None, parts(), datetime.now())  # type: ignore[arg-type]
    worker = BufferedThreadWorker.__new__(BufferedThreadWorker)
    assert worker._serve(connection, b"") is False
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["a bug"]
    assert response.is_closing
