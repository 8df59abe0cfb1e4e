"""HTTP manners: what clients of every kind may expect of the addresses, with curl where curl can do it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ENDLESS_CHARS
from tests.disconnecting_clients import in_flight
from tests.servers import RedisServer, Service, eventually, read_events

LONG: dict[str, Any] = {"prompt": "hello", "seed": 7, "max_chars": ENDLESS_CHARS}


@pytest.fixture(scope="module")
def jobs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a job queue of its own, which no worker empties, and a corpus."""
    redis = RedisServer()
    redis.start()
    folder = tmp_path_factory.mktemp("corpora")
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis.url, CORPORA_DIR=str(folder)) as service:
        assert service.client.put("/corpora/words", content="so it is said\n" * 300).status_code == 201
        yield service
    redis.remove()


def exchange(service: Service, path: str, body: dict[str, Any], version: str, *, half_close: bool) -> bytes:
    """Send a request over a bare socket, close the sending side if requested, and read until the end."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
        return received


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_sending_side_is_answered(
    service: Service, path: str, version: str, stream: bool
) -> None:
    """Half-closed after the request: the same answer as to a client that keeps both sides open."""
    length = {"max_chars": 60_000} if path == "/generate" else {"max_tokens": 60_000}
    body = {"prompt": "hello", "seed": 7, "stream": stream, **length}
    plain, half = (exchange(service, path, body, version, half_close=half_close) for half_close in (False, True))
    assert re.match(rb"(HTTP/1.1 100 Continue\r\n\r\n)?HTTP/1.\d 200 OK\r\n", half), half[:200]
    assert version == "1.1" or not half.startswith(b"HTTP/1.1 100")
    assert texts(half) == texts(plain)
    assert len(texts(plain)) == 60_000


def texts(response: bytes) -> str:
    """All text in a response, whole or streamed."""
    return "".join(json.loads(f'"{text}"') for text in re.findall(r'"text": ?"((?:[^"\\]|\\.)*)"', response.decode()))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_is_gone_is_noticed(endless: Service, stream: bool) -> None:
    """Closed on both sides while its text is generated, before it has read anything: the slot is free again."""
    data = json.dumps({**LONG, "stream": stream}).encode()
    head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for _ in range(4):
        connection = socket.create_connection(("127.0.0.1", endless.port))
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        eventually(lambda: in_flight(endless) > 0)
        connection.close()
        eventually(lambda: in_flight(endless) == 0)
    assert endless.post(max_chars=1).status_code == 200


def test_a_stream_that_is_resumed_at_its_end_answers_204(service: Service) -> None:
    """An EventSource that reconnects after the end stops then; one that lacks a character gets it."""
    *_, last, done = service.events(prompt="hello", seed=7, max_chars=50)
    address = f"{service.url}/sessions/{done.data['session_id']}/stream"
    for options in (["-H", f"Last-Event-ID: {last.id}"], ["-G", "-d", f"from={last.id}"]):
        assert curl("-o", "-", "-w", "%{http_code}", *options, address) == "204"
        assert curl("-I", "-w", "%{http_code}", *options, address).splitlines()[0].startswith("HTTP/1.1 2")
    assert '"text"' in curl("-H", f"Last-Event-ID: {last.id - 1}", address)
    assert '"text"' in curl(address)


def test_a_stream_that_was_stopped_can_be_continued_at_once(endless: Service) -> None:
    """Hang up, and send the next request of the session in the same moment: no 409, many times."""
    for i in range(10):
        with endless.client.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
            events = read_events(response)
            start = next(events).data
            next(events)
        answer = endless.post(session_id=start["session_id"], max_chars=5)
        assert answer.status_code == 200, (i, answer.text)
        assert len(answer.json()["text"]) == 5


def test_a_session_that_stays_busy_says_when_to_come_again(endless: Service) -> None:
    """Two writers: the second gets 409 with Retry-After, after a moment."""
    with endless.client.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
        events = read_events(response)
        start = next(events).data
        refused = endless.post(session_id=start["session_id"], max_chars=5)
        assert (refused.status_code, refused.headers["Retry-After"]) == (409, "1")


def test_head_changes_nothing(service: Service) -> None:
    """HEAD of every address that has GET: its status, no body, and a running stream goes on."""
    with service.client.stream("POST", "/generate", json={**LONG, "max_chars": 100_000, "stream": True}) as response:
        events = read_events(response)
        session = next(events).data
        paths = [
            "/", "/healthz", "/readyz", "/metrics", "/models", "/corpora", "/jobs", "/v1/models", "/v1/models/longhand",
            "/tokenizer_info", f"/sessions/{session['session_id']}", f"/sessions/{session['session_id']}/stream",
            f"/sessions/{session['session_id']}/stream?from=5",
        ]  # fmt: skip
        for path in paths:
            answer = service.client.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
        *_, last = events
    assert last.data["finish_reason"] == "length"


def test_an_idempotency_key_makes_one_job(jobs: Service) -> None:
    """The same request with the same key is the same job; another request with it is refused, and names the job."""
    body = {"corpus": "words", "minutes": 0.1}
    headers = {"Idempotency-Key": "a-key-of-this-test-1"}
    before = _job_ids(jobs)
    first, again = (jobs.client.post("/retrain", json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["job_id"] == again.json()["job_id"]
    assert first.headers["Location"] == again.headers["Location"]
    assert _job_ids(jobs) - before == {first.json()["job_id"]}
    other = jobs.client.post("/retrain", json={**body, "minutes": 0.2}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "key_reused")
    assert other.json()["error"]["job"] == first.headers["Location"]
    short = jobs.client.post("/retrain", json=body, headers={"Idempotency-Key": "short"})
    assert (short.status_code, short.json()["error"]["field"]) == (422, "Idempotency-Key")
    without = jobs.client.post("/retrain", json=body)
    assert without.json()["job_id"] != first.json()["job_id"]


def _job_ids(jobs: Service) -> set[str]:
    return {job["job_id"] for job in jobs.client.get("/jobs").json()["jobs"]}


def test_a_reused_key_has_one_code(jobs: Service) -> None:
    """A key of another request is refused with the same code by the addresses of texts and of jobs."""
    headers = {"Idempotency-Key": "a-key-of-this-test-2"}
    for path, body, other in (
        ("/generate", {"max_chars": 5}, {"max_chars": 6}),
        ("/retrain", {"corpus": "words", "minutes": 0.1}, {"corpus": "words", "minutes": 0.3}),
    ):
        assert jobs.client.post(path, json=body, headers=headers).is_success
        refused = jobs.client.post(path, json=other, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "key_reused")


def test_a_form_is_no_corpus(jobs: Service, tmp_path: Path) -> None:
    """What curl -F and -d send is refused, with the command that stores the text; that command works."""
    text = "the first of us\nwho says it's so\n" * 20
    file = tmp_path / "mine.txt"
    file.write_text(text)
    address = f"{jobs.url}/corpora/mine"
    for options in (
        ["-X", "PUT", "-F", f"file=@{file}"],
        ["-X", "PUT", "-d", f"@{file}"],
        ["-X", "PUT", "--data-binary", f"@{file}"],
    ):
        error = json.loads(curl(*options, address))["error"]
        assert error["code"] == "wrong_media_type"
        assert f"curl -T FILE {address}" in error["message"]
        assert jobs.client.get("/corpora/mine").status_code == 404
    command = error["expected"].partition("curl ")[2].replace("FILE", str(file)).split()
    assert json.loads(curl(*command))["characters"] == len(text)


def curl(*arguments: str) -> str:
    """The output of curl."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return subprocess.run([program, "-s", "-m", "60", *arguments], capture_output=True, text=True, check=True).stdout
