"""Clients that send slowly, send garbage or never read: they cost a connection, and nobody else anything."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.server.worker import BODY_S, HEAD_S
from tests.servers import RedisServer, Service, eventually, parse_events

POST = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
THREADS = 8 + 8 + 16  # SLOTS, MAX_WAITING and what service/server/gunicorn_config.py adds


HALVES = {
    "head": b"GET /healthz HTTP/1.1\r\nHos",
    "body": b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
}


@pytest.fixture(scope="module")
def crowded(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service of its own, since these tests fill it."""
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, MAX_CHARS="1000000") as service:
        yield service


def connect(service: Service, data: bytes, receive_bytes: int = 0) -> socket.socket:
    """Open a connection and send this; receive_bytes bounds what the system takes before the test reads."""
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(("127.0.0.1", service.port))
    connection.settimeout(60)
    connection.sendall(data)
    return connection


def generate(body: Mapping[str, object]) -> bytes:
    """Return the bytes of a POST /generate."""
    data = json.dumps(body).encode()
    return (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(data)
    ) + data


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read until the server closes: the status and the body."""
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture(scope="module", autouse=True)
def halves(crowded: Service) -> Iterator[dict[str, Future[tuple[int, bytes, float]]]]:
    """Requests that do not go on: the status, the body and the seconds of their answers, awaited beside all tests."""

    def answered(data: bytes) -> tuple[int, bytes, float]:
        began = time.monotonic()
        with connect(crowded, data) as connection:
            return (*answer(connection), time.monotonic() - began)

    with ThreadPoolExecutor() as pool:
        yield {what: pool.submit(answered, data) for what, data in HALVES.items()}


def answers_text(service: Service) -> bool:
    return httpx.post(f"{service.url}/generate", json={"max_chars": 5}, timeout=20).status_code == 200


def is_quick(service: Service) -> None:
    """Health, a refusal and a text are all answered at once, on a new connection each."""
    began = time.monotonic()
    assert httpx.get(f"{service.url}/healthz", timeout=20).status_code == 200
    assert httpx.post(f"{service.url}/generate", json={"max_chars": -1}, timeout=20).status_code == 422
    assert time.monotonic() - began < HEAD_S / 2  # far below what a held thread would cost
    assert answers_text(service)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-",
        POST + b"Content-Length: 1000\r\n\r\n{",
        b"PUT /corpora/slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ],
    ids=["silent", "half a head", "half a body", "half a chunk"],
)
def test_more_slow_senders_than_threads_hold_up_nobody(crowded: Service, data: bytes) -> None:
    """Three times as many as there are threads, and everyone else is served as ever."""
    with ExitStack() as stack:
        for _ in range(3 * THREADS):
            stack.enter_context(connect(crowded, data))
        is_quick(crowded)


def test_more_readers_that_never_read_than_threads_hold_up_nobody(crowded: Service) -> None:
    """Streams that nobody reads end by themselves, and give their slots back; JSON answers likewise."""
    with ExitStack() as stack:
        for i in range(3 * THREADS):
            body = {"max_chars": 30_000, "stream": i % 2 == 0, "logprobs": 3}
            stack.enter_context(connect(crowded, generate(body), receive_bytes=2048))
        began = time.monotonic()
        assert httpx.get(f"{crowded.url}/healthz", timeout=20).status_code == 200
        assert time.monotonic() - began < HEAD_S / 2
        # Requests that wait for a thread generate after those that have one: nothing is left when texts are answered
        # again and again. The reference stepper is slow.
        eventually(lambda: crowded.client.get("/readyz").json()["in_flight"] == 0, within_s=300)
        eventually(lambda: all(answers_text(crowded) for _ in range(10)), within_s=300)
        is_quick(crowded)


def test_a_client_that_resets_its_connection_does_not_end_the_worker(crowded: Service) -> None:
    """Also one that asks for "100 Continue" and is gone before it is sent."""
    workers = crowded.workers()
    for _ in range(100):
        connection = connect(crowded, b"")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
        connection.sendall(POST + b"Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n")
        connection.close()
    assert answers_text(crowded)
    assert crowded.workers() == workers


def test_half_a_request_ends_with_a_408(halves: dict[str, Future[tuple[int, bytes, float]]]) -> None:
    """A head or a body that does not arrive is answered in the API's form, and the connection closes."""
    for what, answered in halves.items():
        status, body, seconds = answered.result()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert what in json.loads(body)["error"]["message"]
        assert seconds < 2 * (HEAD_S + BODY_S)


def test_a_slow_reader_gets_every_character(crowded: Service) -> None:
    """One that reads a little now and then gets exactly the text that a quick one gets."""
    body = {"prompt": "a slow one", "max_chars": 4000, "seed": 11}
    expected = crowded.generate(**body)["text"]
    with connect(crowded, generate({**body, "stream": True, "logprobs": 2}), receive_bytes=2048) as connection:
        data = b""
        while not data.endswith(b"\r\n0\r\n\r\n"):  # the last chunk of the answer
            part = connection.recv(700)
            assert part, "the stream was cut"
            data += part
    chunks, rest = [], data.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    events = parse_events(b"".join(chunks).decode())
    assert "".join(e.data["text"] for e in events if e.name == "message") == expected


def test_a_byte_at_a_time_is_still_a_request(crowded: Service) -> None:
    """Requests behind each other on one connection are answered in order, however they are cut."""
    data = generate({"max_chars": 3, "seed": 1}) + generate({"max_chars": 4, "seed": 1})
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connect(crowded, b"") as connection:
        for byte in data + last:
            connection.sendall(bytes([byte]))
        read = b""
        while part := connection.recv(1 << 16):
            read += part
    assert read.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"garbage\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 6000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
    ],
    ids=["chunk size", "garbage", "version", "two lengths", "head", "address"],
)  # fmt: skip
def test_what_is_not_http_is_refused_with_its_status(crowded: Service, data: bytes, status: int) -> None:
    """Never a 500: the answer is the API's error, and the connection closes."""
    with connect(crowded, data) as connection:
        matches, body = answer(connection)
    assert matches == status
    assert set(json.loads(body)["error"]) >= {"code", "message"}


def test_a_kept_connection_is_used_again_after_seconds(crowded: Service) -> None:
    """Longer than the two seconds after which connections used to be closed: no request meets a close."""

    def statuses(pause_s: float) -> list[int]:
        with httpx.Client(base_url=crowded.url, timeout=30) as client:
            first = client.post("/generate", json={"max_chars": 1})
            time.sleep(pause_s)  # the pause is what is tested
            return [first.status_code, client.post("/generate", json={"max_chars": 1}).status_code]

    pauses_s = (0.0, 1.95, 2.05, 3.0)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(statuses, pauses_s)) == [[200, 200]] * len(pauses_s)
