"""What becomes of connections that wait to be accepted when a worker process ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from service.models.manager import ModelManager
from service.operations.drain import Drain
from service.server.worker import BufferedThreadWorker


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.mark.parametrize("way", ["it serves", "the service ends", "it ends alone", "it ends alone, then the service"])
def test_only_a_service_that_ends_refuses_them(listener: socket.socket, way: str) -> None:
    """Where others accept, or the worker that replaces this one, they wait; where nobody will, the answer is 503."""
    drain = Drain(ModelManager(), notice_s=0, timeout_s=0)
    if "alone" in way:
        drain.begin_alone()
    if way.endswith(("the service ends", "the service")):
        drain.begin()
    worker: Any = SimpleNamespace(wsgi=SimpleNamespace(extensions={"drain": drain}), sockets=[listener])
    with socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        BufferedThreadWorker._refuse_backlog(worker)
        if drain.is_draining and not drain.is_replaced:
            assert client.recv(4096).startswith(b"HTTP/1.1 503 ")
        else:
            listener.settimeout(5)
            listener.accept()[0].close()
    assert drain.is_replaced is (way == "it ends alone")
