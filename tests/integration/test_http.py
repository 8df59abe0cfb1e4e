"""The laws through HTTP, gunicorn and Redis."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import ALPHABET
from tests.servers import RedisServer, Service, eventually, read_events

PAYLOAD = {"prompt": "hello", "seed": 7, "temperature": 0.9, "top_p": 0.95}


@pytest.fixture(scope="module")
def expected(tiny: Checkpoint) -> str:
    """The 200 characters that a stepper alone writes."""
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, "hello", 200, SamplingParams(0.9, top_p=0.95), seed=7))


@pytest.fixture(scope="module")
def crowded(store: Path) -> Iterator[Service]:
    """A service with two slots and two places, which tests fill."""
    settings = {"SLOTS": "2", "MAX_WAITING": "2", "MAX_CHARS": "100000000"}
    with Service(CHECKPOINT_DIR=str(store), **settings) as service:
        yield service


@pytest.fixture(scope="module")
def apart(store: Path) -> Iterator[tuple[Service, RedisServer]]:
    """A service and its Redis, which tests stop and start again."""
    redis = RedisServer()
    redis.start()
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis.url) as service:
        yield service, redis
    redis.remove()


@pytest.mark.parametrize("stream", [False, True])
def test_how_a_text_is_cut_into_requests_changes_nothing(service: Service, expected: str, stream: bool) -> None:
    """200 characters at once = 100 + 100 = 200 x 1, by sessions in Redis, streamed and not; = a stepper alone."""
    for cuts in ([200], [100, 100], [1] * 200):
        text, id = "", None
        for n in cuts:
            body = (
                {**PAYLOAD, "max_chars": n}
                if id is None
                else {**PAYLOAD, "prompt": "", "session_id": id, "max_chars": n}
            )
            if stream:
                events = service.events(**body)
                text += "".join(e.data["text"] for e in events if e.name == "message")
                last = events[-1].data
            else:
                last = service.generate(**body)
                text += last["text"]
            id = last["session_id"]
            assert last["saved"] is True
            assert last["position"] == 5 + len(text)
        assert text == expected


def test_a_session_is_the_text_so_far(service: Service, expected: str) -> None:
    """Going on in a session equals starting anew with all its text as the prompt: a session is only a saving."""
    again = service.generate(**{**PAYLOAD, "prompt": "hello" + expected[:150], "max_chars": 50})
    assert again["text"] == expected[150:]


def test_the_session_keeps_its_seed(service: Service, expected: str) -> None:
    """The seed of a request counts once; without one, one is drawn and returned, and draws the same text again."""
    first = service.generate(**{**PAYLOAD, "max_chars": 100})
    rest = service.generate(session_id=first["session_id"], max_chars=100, temperature=0.9, top_p=0.95)
    assert first["text"] + rest["text"] == expected
    drawn = service.generate(prompt="hello", max_chars=40)
    assert service.generate(prompt="hello", max_chars=40, seed=drawn["seed"])["text"] == drawn["text"]


def test_the_stream_tells_where_it_is(service: Service) -> None:
    """Events: a start, chunks whose ids are the positions after them, a last one like the JSON answer."""
    start, *chunks, done = service.events(**PAYLOAD, max_chars=60)
    assert start.name == "start"
    assert start.data["position"] == 5
    position = 5
    for chunk in chunks:
        position += len(chunk.data["text"])
        assert (chunk.name, chunk.id) == ("message", position)
    assert done.name == "done"
    answer = service.generate(**PAYLOAD, max_chars=60)
    for field in ("finish_reason", "position", "seed", "model", "usage", "saved"):
        assert done.data[field] == answer[field]
    assert answer["usage"] == {"prompt_chars": 5, "generated_chars": 60, "reused_chars": 0}
    assert start.data["session_id"] == done.data["session_id"] != answer["session_id"]


def test_a_stop_leaves_the_session_where_the_text_ends(service: Service, expected: str) -> None:
    """What follows in the session is what followed the shown text, the stop string's own characters first."""
    stop = expected[40:44]
    first = service.generate(**PAYLOAD, max_chars=200, stop=[stop])
    assert first["text"] == expected[: expected.index(stop)]
    assert first["finish_reason"] == "stop"
    rest = service.generate(session_id=first["session_id"], max_chars=30, temperature=0.9, top_p=0.95)
    assert rest["text"] == expected[len(first["text"]) :][:30]


def test_of_two_requests_on_one_session_one_wins(crowded: Service) -> None:
    """Two at once: one is answered, the other gets 409, and the session continues as if it had been the only one.

    A text takes far longer than a request waits for its session. On a busy machine one may end before the other begins
    all the same; then both are answered, and two more are sent.
    """
    session_id = crowded.generate(**PAYLOAD, max_chars=10)["session_id"]
    position, n_chars = 15, 1_000_000

    def send(start: threading.Barrier, answers: list[httpx.Response]) -> None:
        start.wait()
        answers.append(crowded.post(session_id=session_id, max_chars=n_chars))

    def one_is_refused() -> bool:
        nonlocal position
        start, answers = threading.Barrier(2), list[httpx.Response]()
        threads = [threading.Thread(target=send, args=(start, answers)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answered = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer not in answered]
        assert {answer.json()["error"]["code"] for answer in refused} <= {"session_conflict"}
        assert {answer.status_code for answer in refused} <= {409}
        assert answered
        position += n_chars * len(answered)
        assert crowded.client.get(f"/sessions/{session_id}").json()["position"] == position
        return len(refused) == 1

    eventually(one_is_refused)
    assert crowded.generate(session_id=session_id, max_chars=5)["position"] == position + 5


def test_head_changes_nothing(service: Service) -> None:
    """HEAD on a running stream has the headers of a stream, and the stream's reader gets its whole text."""
    body = {"max_chars": 20_000, "seed": 5, "stream": True}
    with service.client.stream("POST", "/generate", json=body) as response:
        stream = read_events(response)
        start = next(stream)
        session_id = start.data["session_id"]
        for _ in range(3):
            head = httpx.head(f"{service.url}/sessions/{session_id}/stream")
            assert (head.status_code, head.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
        events = [start, *stream]
    assert [event.name for event in events if event.name != "message"] == ["start", "done"]
    assert sum(len(event.data["text"]) for event in events if event.name == "message") == 20_000
    assert httpx.head(f"{service.url}/sessions/{'x' * 32}/stream").status_code == 404


def test_sessions_can_be_looked_at_and_forgotten(service: Service) -> None:
    """GET tells position, seed and tail; after DELETE there is nothing, and it cannot be gone on with."""
    made = service.generate(**PAYLOAD, max_chars=20)
    path = f"/sessions/{made['session_id']}"
    result = service.client.get(path).json()
    assert (result["position"], result["seed"], result["recent_text"]) == (25, 7, "hello" + made["text"])
    assert service.client.delete(path).status_code == 204
    for gone in (service.client.get(path), service.client.delete(path), service.post(session_id=made["session_id"])):
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "unknown_session"


def test_unknown_characters_can_be_skipped(service: Service) -> None:
    """on_unknown = skip reads the prompt without them, and says how much it read."""
    skipped = service.generate(prompt="héllo", max_chars=30, seed=7, on_unknown="skip", stop=["é"])
    plain = service.generate(prompt="hllo", max_chars=30, seed=7)
    assert skipped["text"] == plain["text"]
    assert skipped["usage"]["prompt_chars"] == 4


def test_a_restart_changes_nothing(apart: tuple[Service, RedisServer], expected: str) -> None:
    """A session begun before a restart of the service goes on after it, and Redis may restart too."""
    service, redis = apart
    first = service.generate(**PAYLOAD, max_chars=90)
    service.stop()
    redis.stop()
    redis.start()
    service.start()
    rest = service.generate(**{**PAYLOAD, "prompt": ""}, session_id=first["session_id"], max_chars=110)
    assert first["text"] + rest["text"] == expected


def test_readers_that_leave_free_their_slots(crowded: Service) -> None:
    """As many clients as slots and places hang up, streaming or not, running or waiting: the next is served."""
    for stream in ("true", "false"):
        leavers = []
        for _ in range(4):
            body = f'{{"max_chars": 100000000, "stream": {stream}}}'.encode()
            s = socket.create_connection(("127.0.0.1", crowded.port))
            head = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}"
            s.sendall(head.encode() + b"\r\n\r\n" + body)
            leavers.append(s)
        eventually(lambda: crowded.client.get("/readyz").json()["in_flight"] == 4)
        assert crowded.post(max_chars=1).status_code == 429
        for s in leavers:
            s.close()
        eventually(lambda: crowded.client.get("/readyz").json()["in_flight"] == 0)
        assert crowded.post(max_chars=1).status_code == 200


def test_a_flood_is_refused_and_health_answers(crowded: Service) -> None:
    """Past slots and line every request gets 429 with Retry-After, and none of it starves the health checks."""
    stop = threading.Event()
    statuses: set[int] = set()

    def client() -> None:
        with httpx.Client(base_url=crowded.url, timeout=60) as mine:
            while not stop.is_set():
                response = mine.post("/generate", json={"max_chars": 300})
                statuses.add(response.status_code)
                if response.status_code == 429:
                    assert int(response.headers["Retry-After"]) >= 1

    threads = [threading.Thread(target=client) for _ in range(16)]
    for t in threads:
        t.start()
    eventually(lambda: statuses == {200, 429})
    for _ in range(20):
        assert crowded.client.get("/healthz").status_code == 200
    stop.set()
    for t in threads:
        t.join()


def test_without_redis_what_needs_none_goes_on(apart: tuple[Service, RedisServer]) -> None:
    """Redis stopped: texts without a session are answered unsaved, sessions get 503; when it is back, both work."""
    service, redis = apart
    begun = service.generate(**PAYLOAD, max_chars=20)
    redis.stop()
    unsaved = service.generate(**PAYLOAD, max_chars=20)
    assert (unsaved["text"], unsaved["saved"], unsaved["session_id"]) == (begun["text"], False, None)
    events = service.events(**PAYLOAD, max_chars=20)
    assert events[-1].data["saved"] is False
    for refused in (
        service.post(session_id=begun["session_id"]),
        service.client.get(f"/sessions/{begun['session_id']}"),
        service.client.delete(f"/sessions/{begun['session_id']}"),
    ):
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert int(refused.headers["Retry-After"]) >= 1
    assert service.client.get("/readyz").json()["session_store"] == "unavailable"
    redis.start()
    eventually(lambda: service.client.get("/readyz").json()["session_store"] == "ok")
    assert service.generate(session_id=begun["session_id"], max_chars=5)["position"] == 30
    assert service.generate(**PAYLOAD, max_chars=20)["saved"] is True
