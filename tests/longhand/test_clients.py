"""Both clients against real services: each operation, each class of error, and what they wait for."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

import longhand
from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from tests.conftest import ENDLESS_CHARS
from tests.integration.test_jobs import SMALL, Stack, words
from tests.longhand.clients import KINDS, client_of
from tests.servers import ROOT, RedisServer, Service, ServiceWithoutModel, eventually

KEY, ADMIN_KEY = "a-readers-key-001", "an-admins-key-001"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(service: Service, kind: str) -> Iterator[longhand.Client]:
    with client_of(kind, service.url) as client:
        yield client


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service without a model, and a training worker."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.worker.start()
    stack.service.start()
    yield stack
    stack.close()


@dataclass
class Small:
    """A service with keys, one slot, one place and a Redis of its own, and how its first model was waited for."""

    service: Service
    redis: RedisServer
    refused: list[longhand.Unavailable]  # what the clients without patience got before there was a model
    texts: list[str]  # what the others got, which had sent their requests before there was a model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Iterator[Small]:
    redis, folder = RedisServer(), tmp_path_factory.mktemp("small")
    redis.start()
    settings = {"CHECKPOINT_DIR": str(folder), "REDIS_URL": redis.url, "API_KEYS": KEY, "ADMIN_KEY": ADMIN_KEY}
    settings |= {"SLOTS": "1", "MAX_WAITING": "1", "MAX_CHARS": "1000000"}
    with ServiceWithoutModel(**settings) as service:
        made = Small(service, redis, [], [])
        with contextlib.ExitStack() as clients:
            for kind in KINDS:
                hasty = clients.enter_context(client_of(kind, service.url, key=KEY, retry_for_s=4))
                with pytest.raises(longhand.Unavailable) as raised:
                    hasty.generate("hello")
                made.refused.append(raised.value)
            patient = [clients.enter_context(client_of(kind, service.url, key=KEY)) for kind in KINDS]
            with ThreadPoolExecutor() as pool:
                waiting = [pool.submit(client.generate, "hello", max_chars=10) for client in patient]
                registry.promote(tiny.save(folder))
                made.texts += [element.result().text for element in waiting]
        yield made
    redis.remove()


def test_a_text_whole_and_as_a_stream(client: longhand.Client, service: Service) -> None:
    """Both are the text of the plain API, with log-probabilities if they are requested, and end in the same answer."""
    options: dict[str, Any] = {"max_chars": 300, "seed": 5, "temperature": 0.9, "logprobs": 2}
    plain = service.generate(prompt="hello", **options)
    whole = client.generate("hello", **options)
    assert (whole.text, whole.position, whole.finish_reason) == (plain["text"], 305, "length")
    assert whole.logprobs is not None
    assert [element.model_dump() for element in whole.logprobs] == [
        {**element, "top": [tuple(entry) for entry in element["top"]]} for element in plain["logprobs"]
    ]
    assert whole.usage.generated_chars == 300
    form: longhand.StructuredOutputs = {"choice": ["yes", "no"]}
    choice = client.generate("hello", max_chars=9, seed=5, structured_outputs=form)
    assert choice.text in form["choice"]
    assert (choice.finish_reason, choice.mask_bits is not None, whole.mask_bits) == ("stop", True, None)
    with client.stream("hello", **options) as stream:
        with pytest.raises(RuntimeError):
            _ = stream.result
        chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == stream.text == whole.text
    assert [chunk.position for chunk in chunks][-1] == stream.position == 305
    assert sum(len(chunk.logprobs or []) for chunk in chunks) == 300
    assert (stream.result.text, stream.result.session_id) == (whole.text, stream.session_id)
    assert stream.reconnects == 0


def test_log_probabilities_alone(client: longhand.Client) -> None:
    """logprobs=0: that of each character, and nothing else."""
    made = client.generate("hello", max_chars=5, logprobs=0)
    assert made.logprobs is not None
    assert [(element.probability, element.top) for element in made.logprobs] == [(None, [])] * 5
    assert len(client.score("hello", logprobs=0).logprobs or []) == 5


def test_sessions(client: longhand.Client) -> None:
    """Two turns are one text; a fork goes on as its origin would; a deleted session is not found."""
    expected = client.generate("hello", seed=5, max_chars=300).text
    first = client.generate("hello", seed=5, max_chars=100)
    assert first.session_id is not None
    fork = client.fork(first.session_id, position=55)
    second = client.generate(session_id=first.session_id, max_chars=200)
    assert first.text + second.text == expected
    assert client.generate(session_id=fork.session_id, max_chars=250).text == expected[50:]
    session = client.session(first.session_id)
    assert (session.position, session.seed, session.rewindable.end) == (305, 5, 305)
    assert session.turn is not None
    assert (session.turn.status, session.turn.start_position) == ("length", 105)
    client.delete_session(first.session_id)
    with pytest.raises(longhand.NotFound) as raised:
        client.session(first.session_id)
    assert (raised.value.status, raised.value.code) == (404, "unknown_session")
    with pytest.raises(longhand.NotFound):
        client.session("../models")


def test_a_text_can_be_had_again(client: longhand.Client) -> None:
    """`resume` sends a session's last text again, from any position of it, and at its end only how it ended."""
    made = client.generate("hello", seed=5, max_chars=300)
    assert made.session_id is not None
    for after, rest in ((None, made.text), (105, made.text[100:]), (304, made.text[299:]), (305, "")):
        with client.resume(made.session_id, after=after) as stream:
            assert "".join(chunk.text for chunk in stream) == rest
        assert (stream.result.position, stream.result.text) == (305, rest)
    empty = client.generate("hello", max_chars=0)
    assert (empty.text, empty.position) == ("", 5)
    assert empty.session_id is not None
    with client.resume(empty.session_id, after=5) as stream:
        assert list(stream) == []


def test_the_same_key_is_the_same_turn(client: longhand.Client) -> None:
    """An Idempotency-Key of the caller's is sent; without one each call is a turn of its own."""
    key = f"the-same-key-{time.monotonic_ns()}"
    one, two = (client.generate("hello", max_chars=20, idempotency_key=key) for _ in range(2))
    assert (one.session_id, one.text) == (two.session_id, two.text)
    assert client.generate("hello", max_chars=20).session_id != one.session_id


def test_a_stream_that_is_left_frees_its_slot(endless: Service, kind: str) -> None:
    """At the end of the `with` block, also if it is left early."""
    with client_of(kind, endless.url) as client, client.stream("hello", max_chars=ENDLESS_CHARS) as stream:
        for _ in stream:
            break
    eventually(lambda: endless.client.get("/readyz").json()["in_flight"] == 0)


def test_a_score(client: longhand.Client, service: Service) -> None:
    """The figures of the plain API."""
    plain = service.client.post("/score", json={"text": "hello you", "logprobs": 1}).json()
    score = client.score("hello you", logprobs=1)
    assert (score.bits_per_character, score.surprisal) == (plain["bits_per_character"], plain["surprisal"])
    assert score.logprobs is not None
    assert len(score.logprobs) == score.characters == 9


def test_an_invalid_value_is_named(client: longhand.Client) -> None:
    """Field, value and expectation, from every kind of request; what cannot help is not sent again."""
    for call, field, value in (
        (lambda: client.generate("hello", temperature=-1), "temperature", -1),
        (lambda: client.stream("hello", max_chars=-2).__enter__(), "max_chars", -2),
        (lambda: client.score(""), "text", ""),
        (lambda: client.generate("hello", idempotency_key="short"), "Idempotency-Key", "short"),
        (lambda: client.retrain(nonsense=1), "nonsense", 1),
    ):
        with pytest.raises(longhand.InvalidRequest) as raised:
            call()
        error = raised.value
        assert (error.status, error.code, error.field, error.value) == (422, "invalid_request", field, value)
        assert error.expected
        assert error.attempts == 1


def test_an_address_that_is_none_is_named() -> None:
    """At once, when the client is made."""
    for wrong in ("localhost:8000", "http://", "ftp://localhost", "http://localhost:port", ""):
        for make in (longhand.Client, longhand.AsyncClient):
            with pytest.raises(ValueError, match="base_url: got"):
                make(wrong)
    with pytest.raises(ValueError, match="timeout_s: got 0"):
        longhand.Client(timeout_s=0)


def test_an_http_client_of_one_s_own(service: Service) -> None:
    """Its address, headers and time-outs are used."""
    with longhand.Client(http=httpx.Client(base_url=service.url)) as client:
        assert len(client.generate("hello", max_chars=10).text) == 10


@pytest.mark.parametrize("document", ["README.md", "docs/client.md"])
def test_the_documents_example(service: Service, document: str) -> None:
    """The program that a document shows runs as it stands, against another address."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    (program,) = [block for block in blocks if "Client(" in block and "import" in block]
    program, n = re.subn(r"http://[\w.]+:8000", service.url, program)
    assert n == 1
    command = [sys.executable, "-c", program.replace("KING.", "king ")]
    assert len(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout) > 200


def test_keys(small: Small) -> None:
    """The key is sent as the API wants it; without one, 401, and for an operator's addresses, 403."""
    for kind in KINDS:
        with client_of(kind, small.service.url, key=KEY) as client:
            assert len(client.generate("a", max_chars=3).text) == 3
            with pytest.raises(longhand.Forbidden):
                client.models()
        with client_of(kind, small.service.url) as client, pytest.raises(longhand.Unauthorized):
            client.generate("a")
        with client_of(kind, small.service.url, key=ADMIN_KEY) as client:
            assert client.models().serving is not None


def test_a_full_server_is_waited_for(small: Small) -> None:
    """429 with Retry-After: sent again until there is a place; with no time to wait, an error with its code."""
    service, chars = small.service, 10**6
    before = _refused(service)
    with contextlib.ExitStack() as clients:
        busy = clients.enter_context(client_of("sync", service.url, key=KEY))
        hasty = [clients.enter_context(client_of(kind, service.url, key=KEY, retry_for_s=0)) for kind in KINDS]
        first = clients.enter_context(busy.stream("hello", max_chars=chars))
        next(iter(first))
        second = clients.enter_context(busy.stream("hello", max_chars=chars))  # waits in the server's queue
        for client in hasty:
            with pytest.raises(longhand.Overloaded) as raised:
                client.generate("hello")
            assert raised.value.code == "queue_full"
            assert 1 <= (raised.value.retry_after_s or 0) <= 60  # as long as the texts before it are expected to take
        patient = [clients.enter_context(client_of(kind, service.url, key=KEY)) for kind in KINDS]
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(client.generate, "hello", max_chars=10) for client in patient]
            eventually(lambda: _refused(service) >= before + 4)
            first.close()
            second.close()
            assert [len(element.result().text) for element in waiting] == [10, 10]


def _refused(service: Service) -> int:
    metrics = service.client.get("/metrics").text
    return round(sum(map(float, re.findall(r"^longhand_requests_refused_total\S* (\S+)$", metrics, re.MULTILINE))))


def test_a_first_model_is_waited_for(small: Small) -> None:
    """503 no_model with Retry-After: sent again until there is a model; an error when the time is too short."""
    assert [(error.code, error.retry_after_s) for error in small.refused] == [("no_model", 5)] * len(KINDS)
    assert [len(text) for text in small.texts] == [10, 10]


def test_a_server_that_never_comes_back(kind: str) -> None:
    """After the bound, and several attempts, the error names the server and how long it was tried."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with client_of(kind, url, retry_for_s=1.5) as client, ThreadPoolExecutor() as pool:
        started = time.monotonic()
        calls = (lambda: client.generate("hello"), client.models, lambda: client.retrain(steps=1))
        for tried in [pool.submit(call) for call in calls]:
            with pytest.raises(longhand.ConnectionFailed) as raised:
                tried.result()
            assert time.monotonic() - started <= 1.5 + 5  # an attempt itself takes no time here; a busy machine does
            assert str(raised.value).startswith(f"{url}: ")
            assert raised.value.attempts > 2
            assert "gave up after" in raised.value.__notes__[0]


def test_another_server_s_answers_are_an_error_of_their_own(service: Service, kind: str) -> None:
    """An answer that is none of this API is named, not interpreted: here the page instead of the API."""
    with client_of(kind, f"{service.url}/page/index.html?") as client, pytest.raises(longhand.InvalidResponse):
        client.jobs()


def test_training_from_a_text_to_its_promotion(stack: Stack) -> None:
    """A corpus is stored, jobs queued and followed to their ends, their models promoted, a promotion undone."""
    with contextlib.ExitStack() as clients:
        both = [clients.enter_context(client_of(kind, stack.service.url)) for kind in KINDS]
        jobs = []
        for steps, client in zip((40, 60), both, strict=True):  # each client has a job of its own
            corpus = client.put_corpus(f"tea-{steps}", words(3000))
            job = client.retrain(**{**SMALL, "corpus": corpus.name, "steps": steps}, promote="always")
            with client.follow_job(job.job_id) as events:
                assert {"progress", "validation"} <= {event.name for event in events}
            assert events.result.has_ended
            assert events.result.state == "finished", events.result.error
            assert events.result.request["corpus"] == corpus.name
            jobs.append(events.result)
        ids = [job.result["checkpoint"]["id"] for job in jobs if job.result]
        for client in both:
            assert {"tea-40", "tea-60"} <= {element.name for element in client.corpora()}
            client.delete_corpus(client.put_corpus("gone", words(3000)).name)
            rows = "kind,name\n" + "".join(f"{n % 3},tea{n}\n" for n in range(20))
            table = client.put_corpus("table", rows, items="csv", column="name", novelty=False, max_item_chars=9)
            assert table.layout == {"items": "csv", "column": "name", "max_item_chars": 9, "novelty": False}
            with pytest.raises(longhand.NotFound):
                client.delete_corpus("gone")
            assert client.job(jobs[1].job_id).state == client.jobs()[0].state == "finished"
            assert [element.id for element in client.models().models if element.promoted] == ids[1:]
            assert client.rollback().id == ids[0]
            assert client.promote(ids[1]).id == ids[1]
            with pytest.raises(longhand.Conflict) as raised:
                client.cancel_job(jobs[0].job_id)
            assert (raised.value.code, raised.value.details["state"]) == ("job_has_ended", "finished")
        eventually(lambda: all((now := c.models().serving) and now.fingerprint == ids[1] for c in both))


def test_a_job_is_followed_over_a_killed_server(stack: Stack) -> None:
    """kill -9 of the server while both clients follow a job: each event once, and the job at the end."""
    stack.service.client.put("/corpora/words", content=words(3000))

    def follow(kind: str, job_id: str, seen: list[longhand.JobEvent]) -> int:
        with client_of(kind, stack.service.url) as client, client.follow_job(job_id) as events:
            seen.extend(events)
            assert events.result.state == "finished"
            return events.reconnects

    with longhand.Client(stack.service.url) as client, ThreadPoolExecutor() as pool:
        job = client.retrain(**{**SMALL, "steps": 1000, "validations": 10}, promote="never")
        seen: list[list[longhand.JobEvent]] = [[], []]
        following = [pool.submit(follow, kind, job.job_id, kept) for kind, kept in zip(KINDS, seen, strict=True)]
        eventually(lambda: all(len(kept) >= 3 for kept in seen), within_s=60)
        for pid in stack.service.workers():
            stack.service.kill_worker(pid)
        assert all(element.result() >= 1 for element in following)
        with client.follow_job(job.job_id) as again:
            whole = list(again)
        assert seen == [whole, whole]


def test_redis_away(small: Small) -> None:
    """Requests wait until the session store answers again, or say that it does not."""
    with contextlib.ExitStack() as clients:
        small.redis.stop()
        for kind in KINDS:
            hasty = clients.enter_context(client_of(kind, small.service.url, key=KEY, retry_for_s=1))
            with pytest.raises(longhand.Unavailable) as raised:
                hasty.generate("hello")
            assert raised.value.code == "store_unavailable"
        patient = [clients.enter_context(client_of(kind, small.service.url, key=KEY)) for kind in KINDS]
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(client.generate, "hello", max_chars=10) for client in patient]
            small.redis.start()
            assert all(element.result().saved for element in waiting)
