"""Readers that leave in the middle of their streams cost nobody anything; bench/fairness does it with 1,000."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disconnecting_clients import in_flight, resources, wave
from tests.servers import RedisServer, Service, eventually

N = 2_000_000


@pytest.fixture(scope="module")
def service(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service of its own, since these tests fill it."""
    settings = {"SLOTS": "16", "MAX_CHARS": str(N), "SNAPSHOT_INTERVAL_S": "3600"}
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **settings) as service:
        yield service


def test_those_who_leave_leave_nothing_behind(service: Service) -> None:
    """Six waves of 16 that hang up at once: every slot is free again, no thread and no descriptor is left over."""
    wave(service, 16)  # the first makes the threads that later ones use again
    before = resources(service)
    waits = [wave(service, 16) for _ in range(5)]
    assert max(waits) < 10  # the claim of 1 s is bench/fairness's: tests share their machine
    # A thread's connection to Redis may still be made; what each of the 80 left behind would be more than that.
    eventually(lambda: resources(service)["descriptors"] <= before["descriptors"] + 16)
    assert resources(service)["threads"] <= before["threads"] + 16
    assert service.post(max_chars=1).status_code == 200


def test_a_position_is_looked_for_as_long_as_somebody_waits(service: Service) -> None:
    """It is found by generating the turn again, which takes as long as the turn took: nobody waits, nothing runs."""
    began = time.monotonic()
    session_id = service.generate(prompt="hello", max_chars=N, seed=1)["session_id"]
    turn_s = time.monotonic() - began
    for path, body in (
        (f"/sessions/{session_id}/fork", {"position": N - 1}),
        ("/generate", {"session_id": session_id, "position": N - 1, "max_chars": 1}),
    ):
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            eventually(lambda: in_flight(service) == 1)
        left = time.monotonic()
        eventually(lambda: in_flight(service) == 0)
        assert time.monotonic() - left < turn_s / 2, path
    assert service.post(session_id=session_id, max_chars=1).status_code == 200
