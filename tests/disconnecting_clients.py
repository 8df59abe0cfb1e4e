"""Clients that hang up in the middle of their streams, all at once, wave after wave; and what they leave behind."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.inspection.service import MAX_CONCURRENT
from tests.servers import Service, eventually


def wave(service: Service, clients: int, chars: int = 1_000_000) -> float:
    """So many streams begin, each gets some text, all hang up: seconds until no slot and no place is taken."""
    body = json.dumps({"max_chars": chars, "stream": True})
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    live = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(clients)]
    for connection in live:
        connection.sendall((head + body).encode())
    unread = set(live)
    while unread:
        for connection in select.select(list(unread), [], [], 30)[0]:
            data = connection.recv(1 << 16)
            assert data, "a stream ended by itself"
            if b'data: {"text"' in data:
                unread.remove(connection)
    left = time.monotonic()
    for connection in live:
        connection.close()
    while in_flight(service):
        assert time.monotonic() - left < 30, "slots were not freed"
        time.sleep(0.01)
    return time.monotonic() - left


def sent_score(service: Service, text: str | list[str]) -> socket.socket:
    """The connection of a request to /score whose answer is not awaited."""
    data = json.dumps({"text": text}).encode()
    head = "POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", service.port))
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


@contextmanager
def scoring_is_full(service: Service) -> Iterator[None]:
    """As many long texts as allowed are being scored; their clients leave at the end."""
    connections = [sent_score(service, "a" * 1_000_000) for _ in range(MAX_CONCURRENT)]

    def is_full() -> bool:
        for answered in select.select(connections, [], [], 0)[0]:  # refused: our own question was in its place
            answered.close()
            connections[connections.index(answered)] = sent_score(service, "a" * 1_000_000)
        return service.client.post("/score", json={"text": "hello"}).status_code == 429

    eventually(is_full)
    yield
    for connection in connections:
        connection.close()


def in_flight(service: Service) -> int:
    number: int = service.client.get("/readyz").json()["in_flight"]
    return number


def resources(service: Service) -> dict[str, int]:
    """Threads and descriptors of the service's workers."""
    pids = service.workers()
    return {
        "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        "descriptors": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
    }
