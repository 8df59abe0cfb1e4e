"""SIGTERM to a real service with running streams: what clients see, in order."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import ALPHABET
from tests.integration.clients import Client, at_once
from tests.servers import RedisServer, Service, eventually, parse_events

LONG = {"prompt": "hello", "temperature": 0.9}


def expected_text(tiny: Checkpoint, seed: int, n: int) -> str:
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, "hello", n, SamplingParams(0.9), seed=seed, block_steps=256))


def test_readyz_fails_then_requests_then_streams_end(store: Path, redis_server: RedisServer, tiny: Checkpoint) -> None:
    """Running requests continue until the timeout, then are interrupted; a stream is resumed elsewhere exactly.

    The other service, which is idle then, exits at once, whatever its timeout.
    """
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "MAX_CHARS": "100000000"}
    short = expected_text(tiny, 1, 5)  # computed now: a draining worker does not wait for a slow test
    draining = Service(**settings, DRAIN_NOTICE_S="1", DRAIN_TIMEOUT_S="2")
    with Service(**settings, DRAIN_TIMEOUT_S="3600") as other, draining:
        client = Client(draining.url)
        job = draining.client.post("/retrain", json={"minutes": 0.1}).json()["job"]
        job_events: list[str] = []
        responses: list[httpx.Response] = []
        streaming, following, asking = at_once(
            [
                lambda: _read_until_interrupted(client),
                lambda: job_events.append(draining.client.get(f"{job}/events").text),
                lambda: responses.append(draining.post(**LONG, max_chars=10**8)),
            ]
        )
        eventually(lambda: bool(client.text) and draining.client.get("/readyz").json().get("in_flight") == 2)
        draining.terminate()
        eventually(lambda: draining.client.get("/readyz").status_code == 503)
        assert draining.client.get("/readyz").json()["error"]["code"] == "draining"
        assert draining.generate(**LONG, seed=1, max_chars=5)["text"] == short  # still accepted
        assert draining.client.get("/healthz").status_code == 200
        refused = draining.post(**LONG, max_chars=5)
        while refused.status_code == 200:  # until the notice is over
            refused = draining.post(**LONG, max_chars=5)
        assert refused.status_code == 503
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("draining", "1")
        assert streaming.is_alive()
        for thread in (streaming, following, asking):
            thread.join()
        assert draining.wait(10) == 0
        assert client.errors == ["draining"]
        assert '"code":"draining"' in job_events[0]
        assert (responses[0].status_code, responses[0].json()["error"]["code"]) == (
            503,
            "draining",
        )  # nothing was sent yet
        assert other.client.delete(job).status_code == 202
        more = _resume(other, client)
        eventually(lambda: other.client.get("/readyz").json()["in_flight"] == 0)
        began = time.monotonic()
        other.terminate()
        assert other.wait(20) == 0
        assert time.monotonic() - began < 10
    events = parse_events(more)
    assert events[0].data["position"] == client.at
    text = client.text + "".join(e.data["text"] for e in events if e.name == "message")
    assert len(text) > len(client.text) > 0
    assert text == expected_text(tiny, 7, len(text))


def test_ctrl_c_interrupts_at_once(store: Path) -> None:
    """SIGINT ends running streams without waiting for them."""
    with Service(CHECKPOINT_DIR=str(store), MAX_CHARS="100000000", DRAIN_TIMEOUT_S="3600") as service:
        body = {**LONG, "max_chars": 10**8, "stream": True}
        with service.client.stream("POST", "/generate", json=body) as response:
            chunks = response.iter_text()
            next(chunks)
            began = time.monotonic()
            service.terminate(signal.SIGINT)
            service.wait(20)
            assert time.monotonic() - began < 10


def _read_until_interrupted(client: Client) -> None:
    client.read("POST", "/generate", json={**LONG, "seed": 7, "max_chars": 10**8, "stream": True})
    client.close()


def _resume(other: Service, client: Client) -> str:
    """Return the first events of the stream that the client resumes on the other service."""
    more = ""
    headers = {"Last-Event-ID": str(client.at)}
    with other.client.stream("GET", f"/sessions/{client.session_id}/stream", headers=headers) as response:
        for chunk in response.iter_text():
            more += chunk
            if len(more) > 20_000:
                break
    return more.rpartition("\n\n")[0]


def test_no_connection_is_reset_while_the_service_ends(store: Path, redis_server: RedisServer) -> None:
    """Until the port is closed each connection gets an answer: 200 or 503, no reset.

    Connections that are kept open delay the workers' end; what arrives meanwhile is in the kernel's queue. One that
    arrives as the port is closed may be reset; after it the port is closed.
    """
    outcomes: list[list[str]] = [[] for _ in range(8)]

    def connect_until_refused(port: int, outcomes: list[str]) -> None:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                outcome = "reset"
            else:
                with connection:
                    try:
                        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                        outcome = connection.recv(12).decode() or "closed"
                    except OSError as e:
                        outcome = type(e).__name__
            outcomes.append(outcome)

    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url) as service:
        port = httpx.URL(service.url).port
        assert port is not None
        kept = [httpx.Client(base_url=service.url) for _ in range(5)]
        for client in kept:
            assert client.get("/healthz").status_code == 200
        connecting = at_once([lambda own=own: connect_until_refused(port, own) for own in outcomes])  # type: ignore[misc]
        eventually(lambda: all(len(own) > 2 for own in outcomes))
        service.terminate()
        assert service.wait(60) == 0
        for thread in connecting:
            thread.join()
        for client in kept:
            client.close()
    before_the_last = {outcome for own in outcomes for outcome in own[:-1]}
    assert before_the_last == {"HTTP/1.1 200", "HTTP/1.1 503"}
