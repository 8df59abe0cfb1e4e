"""SIGTERM to a real service under streams: what is seen from outside, in order."""

from __future__ import annotations

import signal
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


def alone(tiny: Checkpoint, seed: int, n: int) -> str:
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, "hello", n, SamplingParams(0.9), seed=seed, block_steps=256))


def test_first_readyz_then_admission_then_the_end(store: Path, redis_server: RedisServer, tiny: Checkpoint) -> None:
    """Streams and answers go on until the limit, then are sent away; a stream goes on elsewhere, to the character.

    The other service, which is idle then, ends at once, whatever its limit.
    """
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "MAX_CHARS": "100000000"}
    short = alone(tiny, 1, 5)  # now: a worker that leaves does not wait for a slow test
    leaving = Service(**settings, DRAIN_NOTICE_S="1", DRAIN_S="3")
    with Service(**settings, DRAIN_S="3600") as other, leaving:
        client = Client(leaving.url)
        job = leaving.client.post("/retrain", json={"minutes": 0.1}).json()["job"]
        told: list[str] = []
        answers: list[httpx.Response] = []
        streaming, following, asking = at_once(
            [
                lambda: _until_sent_away(client),
                lambda: told.append(leaving.client.get(f"{job}/events").text),
                lambda: answers.append(leaving.post(**LONG, max_chars=10**8)),
            ]
        )
        eventually(lambda: bool(client.text) and leaving.client.get("/readyz").json().get("in_flight") == 2)
        leaving.terminate()
        eventually(lambda: leaving.client.get("/readyz").status_code == 503)
        assert leaving.client.get("/readyz").json()["error"]["code"] == "draining"
        assert leaving.generate(**LONG, seed=1, max_chars=5)["text"] == short  # still taken
        assert leaving.client.get("/healthz").status_code == 200
        refused = leaving.post(**LONG, max_chars=5)
        while refused.status_code == 200:  # until the notice is over
            refused = leaving.post(**LONG, max_chars=5)
        assert refused.status_code == 503
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("draining", "1")
        assert streaming.is_alive()  # its text goes on meanwhile
        for thread in (streaming, following, asking):
            thread.join()
        assert leaving.wait(10) == 0
        assert client.errors == ["draining"]
        assert '"code": "draining"' in told[0]  # a job's events have no end of their own
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "draining")  # nothing was sent yet
        assert other.client.delete(job).status_code == 202
        more = _some_more(other, client)
        eventually(lambda: other.client.get("/readyz").json()["in_flight"] == 0)
        began = time.monotonic()
        other.terminate()
        assert other.wait(20) == 0
        assert time.monotonic() - began < 10
    events = parse_events(more)
    assert events[0].data["position"] == client.at
    text = client.text + "".join(e.data["text"] for e in events if e.name == "message")
    assert len(text) > len(client.text) > 0
    assert text == alone(tiny, 7, len(text))


def test_ctrl_c_does_not_wait(store: Path) -> None:
    """SIGINT is for who does not want to wait: streams end now."""
    with Service(CHECKPOINT_DIR=str(store), MAX_CHARS="100000000", DRAIN_S="3600") as service:
        body = {**LONG, "max_chars": 10**8, "stream": True}
        with service.client.stream("POST", "/generate", json=body) as response:
            chunks = response.iter_text()
            next(chunks)
            began = time.monotonic()
            service.terminate(signal.SIGINT)
            service.wait(20)
            assert time.monotonic() - began < 10


def _until_sent_away(client: Client) -> None:
    client.read("POST", "/generate", json={**LONG, "seed": 7, "max_chars": 10**8, "stream": True})
    client.close()


def _some_more(other: Service, client: Client) -> str:
    """The beginning of the stream that the client goes on with there: whole events."""
    more = ""
    headers = {"Last-Event-ID": str(client.at)}
    with other.client.stream("GET", f"/sessions/{client.session_id}/stream", headers=headers) as response:
        for chunk in response.iter_text():
            more += chunk
            if len(more) > 20_000:
                break
    return more.rpartition("\n\n")[0]
