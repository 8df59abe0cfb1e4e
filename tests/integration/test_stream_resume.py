"""Streams that survive: killed workers, lost connections, two at once, a new model, an emptied Redis."""

from __future__ import annotations

import random
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from service.store.connect import connect
from service.store.sessions import digest
from tests.conftest import ALPHABET, random_checkpoint
from tests.integration.application import Application
from tests.servers import Event, RedisServer, Service, eventually, read_events

N = 6000
TUNED: dict[str, Any] = {
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.4,
    "presence_penalty": 0.6,
    "penalty_window": 100,
    "typical_p": 0.9,
    "logit_bias": {"e": -2.0, " ": 1.0},
}
PAYLOAD = {"prompt": "hello", "seed": 7, "temperature": 0.9, "max_chars": N}
LONG = 60_000
"""So many characters, with log-probabilities, are more than the buffers of a connection hold: until they are read, they
are not all generated."""
QUICK = {"LEASE_S": "1", "SNAPSHOT_INTERVAL_S": "0.05", "MAX_PROMPT_CHARS": "200000"}


@pytest.fixture(scope="module")
def expected(tiny: Checkpoint) -> str:
    stepper, _ = choose(tiny.network(), 1)
    return "".join(write(stepper, ALPHABET, "hello", LONG + 500, SamplingParams(0.9), seed=7, block_steps=256))


@pytest.fixture(scope="module")
def other(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A second service on the same Redis: any worker goes on with any session."""
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **QUICK) as other:
        yield other


class Client:
    """A client that reads some characters of a stream."""

    def __init__(self, service: Service, streams: ExitStack, after_chars: int, **body: Any) -> None:
        self.text, self.at, self.session_id = "", 0, ""
        stream = service.client.stream("POST", "/generate", json={**PAYLOAD, **body, "stream": True})
        response = streams.enter_context(stream)
        assert response.status_code == 200, response.read()
        self._events = read_events(response)  # kept: with its iterator, the response would be closed
        for event in self._events:
            if event.name == "start":
                self.session_id = event.data["session_id"]
            if event.name == "message":
                self.text += event.data["text"]
                self.at = event.id
            if len(self.text) >= after_chars:
                return


class Cut(Client):
    """A client that loses its stream after some characters."""

    def __init__(self, service: Service, after_chars: int, **body: Any) -> None:
        with ExitStack() as streams:
            super().__init__(service, streams, after_chars, **body)


@pytest.fixture(scope="module")
def killed(store: Path, redis_server: RedisServer) -> dict[str, Client]:
    """What clients had of their streams when kill -9 ended their service in the middle of all of them."""
    dying = Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **QUICK)
    dying.start()
    with ExitStack() as streams:
        long = {"max_chars": LONG, "logprobs": 10}
        clients = {
            "later": Client(dying, streams, 2500, **long),
            "tuned": Client(dying, streams, 200, **{**long, **TUNED, "max_chars": LONG - 1000}),
            "interrupted": Client(dying, streams, 1000, **long),
            "soon": Client(dying, streams, 50, **long),
        }
        dying.kill()
    return clients


def text_of(events: list[Event]) -> str:
    return "".join(e.data["text"] for e in events if e.name == "message")


@pytest.mark.parametrize("after", ["soon", "later"])
def test_a_killed_worker_s_stream_goes_on_elsewhere(
    other: Service, killed: dict[str, Client], expected: str, after: str
) -> None:
    """kill -9 in mid-stream; another worker goes on with the very next character, and commits."""
    client = killed[after]
    events = other.resume(client.session_id, client.at)
    assert events[0].data["position"] == client.at
    assert client.text + text_of(events) == expected[:LONG]
    done = events[-1].data
    assert (done["finish_reason"], done["position"], done["saved"]) == ("length", 5 + LONG, True)
    assert done["usage"]["generated_chars"] == LONG
    more = other.generate(session_id=client.session_id, max_chars=500, temperature=0.9)
    assert more["text"] == expected[LONG:]


def test_a_lost_stream_can_be_had_from_any_character(other: Service, expected: str) -> None:
    """While the turn is remembered, running or ended, its stream is written again from any position."""
    client = Cut(other, 100)
    for after in (client.at, 5, 5 + 77, 5 + N - 1, 5 + N):
        assert text_of(other.resume(client.session_id, after)) == expected[after - 5 : N]
    assert text_of(other.resume(client.session_id)) == expected[:N]
    assert text_of(other.resume(client.session_id, 0)) == expected[:N]
    response = other.client.get(f"/sessions/{client.session_id}/stream?from=5999")
    assert text_of(list(read_events(response))) == expected[5994:N]


def test_a_stopped_text_ends_again_where_it_ended(other: Service, expected: str) -> None:
    """A stop string holds for the resumed stream, too, and after the end nothing more comes."""
    stop = expected[700:704]
    end = expected.index(stop)
    client = Cut(other, min(50, end), stop=[stop])
    for after in (5 + 20, client.at):
        events = other.resume(client.session_id, after)
        assert text_of(events) == expected[after - 5 : end]
        assert after == 5 + end or events[-1].data["finish_reason"] == "stop"
    assert other.client.get(f"/sessions/{client.session_id}").json()["position"] == 5 + end


def test_what_penalties_depend_on_survives(other: Service, killed: dict[str, Client]) -> None:
    """A killed worker, a new turn, a rewound and a forked session: the text is that of one request."""
    client, n = killed["tuned"], LONG - 1000
    whole = other.generate(**{**PAYLOAD, **TUNED, "max_chars": LONG})["text"]
    assert whole != other.generate(**{**PAYLOAD, "max_chars": LONG})["text"]
    assert client.text + text_of(other.resume(client.session_id, client.at)) == whole[:n]
    how = {"temperature": PAYLOAD["temperature"], **TUNED}
    assert other.generate(session_id=client.session_id, max_chars=500, **how)["text"] == whole[n : n + 500]
    fork = other.client.post(f"/sessions/{client.session_id}/fork", json={}).json()["session_id"]
    for session_id in (client.session_id, fork):
        assert other.generate(session_id=session_id, max_chars=500, **how)["text"] == whole[n + 500 :]
    back = other.generate(session_id=client.session_id, position=5 + n + 700, max_chars=300, **how)
    assert back["text"] == whole[n + 700 :]


def test_a_stop_string_does_not_count_before_min_chars(other: Service, expected: str) -> None:
    """The text ends before the first match that begins after min_chars characters, also when it is resumed."""
    stop = expected[20:22]
    at = expected.index(stop, 1000)
    client = Cut(other, 50, stop=[stop], min_chars=1000)
    for after in (5 + 20, client.at, 5 + 1000):
        events = other.resume(client.session_id, after)
        assert text_of(events) == expected[after - 5 : at]
        assert events[-1].data["finish_reason"] == "stop"


def test_penalties_look_at_no_more_than_a_session_keeps(store: Path) -> None:
    """422 for a window that could not be continued with, which names the setting."""
    with Application(CHECKPOINT_DIR=str(store), SESSION_RECENT_TEXT_CHARS="50") as service:
        refused = service.post(max_chars=5, presence_penalty=1.0)
        assert refused.status_code == 422
        assert "at most 50, the characters that a session keeps" in refused.json()["error"]["message"]
        assert service.post(max_chars=5, presence_penalty=1.0, penalty_window=50).status_code == 200


def test_an_interrupted_turn_wants_to_be_resumed_or_placed(
    other: Service, killed: dict[str, Client], expected: str
) -> None:
    """A plain POST after a crash gets 409 and is told why; with `position` it goes on from what its client has."""
    client = killed["interrupted"]
    eventually(lambda: other.client.get(f"/sessions/{client.session_id}").json()["turn"]["status"] == "interrupted")
    refused = other.post(session_id=client.session_id, max_chars=10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "turn_interrupted")
    on = other.generate(session_id=client.session_id, position=client.at, max_chars=100, temperature=0.9)
    assert client.text + on["text"] == expected[: len(client.text) + 100]


def test_a_stopped_process_that_wakes_up_writes_nothing(
    store: Path, redis_server: RedisServer, other: Service, expected: str
) -> None:
    """SIGSTOP past its lease, taken over, SIGCONT: the session is what the second made of it."""
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis_server.url, **QUICK) as sleeping:
        body = {**PAYLOAD, "max_chars": 100_000, "stream": True}
        with sleeping.client.stream("POST", "/generate", json=body) as response:
            events = read_events(response)
            id = next(events).data["session_id"]
            next(events)
            sleeping.send_signal(signal.SIGSTOP)
            eventually(lambda: other.client.get(f"/sessions/{id}").json()["turn"]["status"] == "interrupted")
            placed = other.generate(session_id=id, position=5, max_chars=50, temperature=0.9)
            sleeping.send_signal(signal.SIGCONT)
            *_, last = events
        assert last.data["error"]["code"] == "session_conflict"
    assert placed["text"] == expected[:50]
    result = other.client.get(f"/sessions/{id}").json()
    assert (result["position"], result["recent_text"]) == (55, "hello" + expected[:50])


def test_a_session_can_be_put_back(other: Service, expected: str) -> None:
    """`position` goes back to any character of the last turn, text or prompt; beyond it, 409 with the range."""
    first = other.generate(**{**PAYLOAD, "max_chars": 300})
    id = first["session_id"]
    assert other.client.get(f"/sessions/{id}").json()["rewindable"] == {"from": 0, "to": 305}
    for back in (5, 6, 105, 304):
        made = other.generate(session_id=id, position=back, max_chars=305 - back, temperature=0.9)
        assert made["text"] == expected[back - 5 : 300]
        assert other.client.get(f"/sessions/{id}").json()["rewindable"] == {"from": back, "to": 305}
    id = other.generate(**{**PAYLOAD, "max_chars": 300})["session_id"]
    in_prompt = other.generate(session_id=id, position=3, prompt="lo", max_chars=40, temperature=0.9)
    assert in_prompt["text"] == expected[:40]
    for beyond in (2, 1000):
        refused = other.post(session_id=id, position=beyond, max_chars=5)
        assert refused.status_code == 409
        assert refused.json()["error"]["rewindable"] == {"from": 3, "to": 45}
    id = other.generate(**{**PAYLOAD, "max_chars": 30})["session_id"]
    anew = other.generate(session_id=id, position=0, prompt="hello", max_chars=30, temperature=0.9)
    assert anew["text"] == expected[:30]


def test_a_fork_goes_its_own_way(other: Service, expected: str) -> None:
    """A fork, now or at a position, goes on as its origin would, or by its own seed, and leaves the origin alone."""
    first = other.generate(**{**PAYLOAD, "max_chars": 100})
    path = f"/sessions/{first['session_id']}/fork"
    for body, at in (({}, 105), ({"position": 55}, 55)):
        forked = other.client.post(path, json=body)
        assert forked.status_code == 201
        assert forked.json()["position"] == at
        on = other.generate(session_id=forked.json()["session_id"], max_chars=50, temperature=0.9)
        assert on["text"] == expected[at - 5 : at + 45]
    seeded = other.client.post(path, json={"seed": 8}).json()
    assert seeded["seed"] == 8
    assert other.generate(session_id=seeded["session_id"], max_chars=50, temperature=0.9)["text"] != expected[100:150]
    assert other.generate(session_id=first["session_id"], max_chars=50, temperature=0.9)["text"] == expected[100:150]
    assert other.client.post(path, json={"position": 10**6}).status_code == 409
    assert other.client.post(path, json={"position": 0}).status_code == 422
    assert other.client.post(f"/sessions/{'x' * 32}/fork", json={}).status_code == 404


def test_a_turn_that_outlives_its_session_is_no_session(other: Service, redis_server: RedisServer) -> None:
    """Each expires by itself. Without the session, whose turn is complete, every address says unknown_session."""
    client = connect(redis_server.url)
    id = other.generate(**{**PAYLOAD, "max_chars": 20})["session_id"]
    assert client.delete(f"lh:{{{digest(id)}}}") == 1
    answers = [
        other.client.get(f"/sessions/{id}"),
        other.client.post(f"/sessions/{id}/fork", json={}),
        other.client.post("/score", json={"session_id": id, "text": "hello"}),
        other.post(session_id=id, max_chars=5),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_session")
        assert "expired" in answer.json()["error"]["message"]


@pytest.mark.parametrize("existing", [False, True])
def test_the_same_key_twice_is_one_turn(other: Service, expected: str, existing: bool) -> None:
    """Later, at once, streamed or not: the same session, the same text, once; for other requests the key is taken."""
    body: dict[str, Any] = {**PAYLOAD, "max_chars": 2000}
    if existing:
        begun = other.generate(**{**PAYLOAD, "max_chars": 10})
        body = {**body, "prompt": "", "session_id": begun["session_id"]}
        expected = expected[10:]
    key = {"Idempotency-Key": str(uuid.uuid4())}
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        response = other.client.post("/generate", json=body, headers=key)
        answers.append(response.json() if response.status_code == 200 else response.json()["error"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    ask()
    whole = [a for a in answers if "text" in a]
    assert whole
    assert {a["code"] for a in answers if a not in whole} <= {"session_conflict"}
    assert {(a["text"], a["session_id"], a["position"]) for a in whole} == {
        (expected[:2000], whole[0]["session_id"], 2005 + 10 * existing)
    }
    assert other.client.get(f"/sessions/{whole[0]['session_id']}").json()["position"] == 2005 + 10 * existing
    changed = other.client.post("/generate", json={**body, "max_chars": 7}, headers=key)
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "key_reused")
    other.generate(session_id=whole[0]["session_id"], max_chars=5)
    late = other.client.post("/generate", json=body, headers=key)
    assert (late.status_code, late.json()["error"]["code"]) == (409, "key_reused")


def test_another_request_with_a_used_key_leaves_the_running_turn_alone(other: Service) -> None:
    """It gets 409 before the lease is touched; the stream with the key goes on to its end."""
    key = {"Idempotency-Key": str(uuid.uuid4())}
    # Far longer than four requests take, on a busy machine, too.
    body = {"prompt": "once", "max_chars": 100_000, "seed": 3, "stream": True, "logprobs": 5}
    with other.client.stream("POST", "/generate", json=body, headers=key) as response:
        stream = read_events(response)
        start = next(stream)
        session_id = start.data["session_id"]
        for _ in range(3):
            refused = other.client.post("/generate", json={**body, "max_chars": 7, "stream": False}, headers=key)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "key_reused")
            assert "another request" in refused.json()["error"]["message"]
        assert other.client.get(f"/sessions/{session_id}").json()["turn"]["status"] == "running"
        events = [start, *stream]
    assert [event.name for event in events if event.name != "message"] == ["start", "done"]


def test_an_idempotency_key_belongs_to_an_api_key(store: Path) -> None:
    """Two clients that send the same one each get a session of their own, and each gets it again."""
    api_keys = ["a-readers-key-001", "a-readers-key-002"]
    body, key = {"prompt": "mine", "max_chars": 5}, str(uuid.uuid4())
    with Application(CHECKPOINT_DIR=str(store), API_KEYS=",".join(api_keys)) as service:
        headers = [{"Authorization": f"Bearer {element}", "Idempotency-Key": key} for element in api_keys * 2]
        answers = [service.client.post("/generate", json=body, headers=element) for element in headers]
    assert [answer.status_code for answer in answers] == [200] * 4
    first, second, first_again, second_again = [answer.json()["session_id"] for answer in answers]
    assert (first, second) == (first_again, second_again)
    assert first != second


def test_a_key_that_others_may_send_is_refused(other: Service) -> None:
    """Short keys, and such as headers cannot carry whole."""
    for key in ("1", "x" * 129, "a b" * 8):
        refused = other.client.post("/generate", json={}, headers={"Idempotency-Key": key})
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "Idempotency-Key"


def test_what_cannot_be_resumed_is_said(other: Service) -> None:
    """No session, no turn, a position outside the turn, or none at all."""
    made = other.generate(**{**PAYLOAD, "max_chars": 20})
    path = f"/sessions/{made['session_id']}/stream"
    for headers, field in (({"Last-Event-ID": "26"}, "Last-Event-ID"), ({"Last-Event-ID": "-1"}, "Last-Event-ID")):
        refused = other.client.get(path, headers=headers)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field)
    assert other.client.get(path + "?from=x").status_code == 422
    assert other.client.get(f"/sessions/{'x' * 32}/stream").status_code == 404
    forked = other.client.post(f"/sessions/{made['session_id']}/fork", json={}).json()
    refused = other.client.get(f"/sessions/{forked['session_id']}/stream")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "no_turn")
    assert other.post(position=5, max_chars=1).json()["error"]["field"] == "position"


def test_a_long_prompt_is_read_once_for_everybody(other: Service, expected: str) -> None:
    """The second time its state is found, at its end or at a stride, and the text is bitwise that of a cold read."""
    prompt = (expected * 2)[:9000]
    cold = other.generate(prompt=prompt, seed=3, max_chars=50)
    warm = other.generate(prompt=prompt, seed=3, max_chars=50)
    longer = other.generate(prompt=prompt + "hello", seed=3, max_chars=50)
    assert [r["usage"]["reused_chars"] for r in (cold, warm, longer)] == [0, 9000, 8192]
    assert warm["text"] == cold["text"]
    split = other.generate(prompt=prompt[:100], seed=3, max_chars=0)
    whole = other.generate(session_id=split["session_id"], prompt=prompt[100:], max_chars=50)
    assert whole["text"] == cold["text"]


def test_a_timeout_ends_a_text_where_it_is(other: Service) -> None:
    """timeout_s: the text so far, finish_reason timeout, and the session goes on from there; 504 before any text."""
    made = other.generate(**{**PAYLOAD, "max_chars": 100_000}, timeout_s=0.05)
    assert made["finish_reason"] == "timeout"
    assert 0 < len(made["text"]) < 100_000
    assert other.generate(session_id=made["session_id"], max_chars=5)["position"] == made["position"] + 5
    late = other.post(prompt="hello " * 20_000, timeout_s=0.001)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    assert "MAX_GENERATION_S" in late.json()["error"]["message"]


def test_a_turn_that_read_nothing_is_not_stored(other: Service, redis_server: RedisServer) -> None:
    """Late ones, in both forms, with and without a session or a key, leave no key; a prompt is stored once."""
    client = connect(redis_server.url)
    prompt = "".join(random.Random(1).choices("abcdefgh ", k=90_000))
    old = other.generate(max_chars=5)
    before = set(client.keys("lh:{*}"))
    for stream in (False, True):
        for session in ({}, {"session_id": old["session_id"]}):
            body = {"prompt": prompt, "timeout_s": 0.001, "stream": stream, **session}
            key = {"Idempotency-Key": str(uuid.uuid4())}
            for headers in ({}, key):
                late = other.client.post("/generate", json=body, headers=headers)
                error = list(read_events(late))[-1].data["error"] if stream else late.json()["error"]
                assert error["code"] == "timeout", error
    assert set(client.keys("lh:{*}")) - before == set()
    assert other.generate(session_id=old["session_id"], max_chars=5)["position"] == old["position"] + 5
    made = other.generate(prompt=prompt, max_chars=5)
    stored = [client.get(f"lh:{{{digest(made['session_id'])}}}")]
    stored += client.hvals(f"lh:{{{digest(made['session_id'])}}}:turn")
    assert sum(map(len, stored)) < 1.2 * len(prompt)
    client.close()


def test_an_emptied_redis_ends_sessions_and_nothing_else(store: Path, expected: str) -> None:
    """Killed under a stream and back without its data: the stream finishes unsaved; then 404, not another's text."""
    redis = RedisServer()
    redis.start()
    try:
        with Service(CHECKPOINT_DIR=str(store), REDIS_URL=redis.url, **QUICK) as service:
            old = service.generate(**{**PAYLOAD, "max_chars": 20})
            with service.client.stream(
                "POST", "/generate", json={**PAYLOAD, "max_chars": 100_000, "stream": True}
            ) as response:
                stream = read_events(response)
                start = next(stream)
                redis.stop(lose_data=True)
                redis.start()
                events = [start, *stream]
            assert text_of(events)[:N] == expected[:N]
            assert events[-1].data["saved"] is False
            for id in (old["session_id"], events[0].data["session_id"]):
                eventually(lambda id=id: service.client.get(f"/sessions/{id}").status_code != 503)  # type: ignore[misc]
                for answer in (service.post(session_id=id, max_chars=5), service.client.get(f"/sessions/{id}/stream")):
                    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_session")
            assert service.generate(**{**PAYLOAD, "max_chars": 20})["saved"] is True
    finally:
        redis.remove()


def test_a_new_model_reads_the_end_of_the_text(tmp_path: Path, redis_server: RedisServer, tiny: Checkpoint) -> None:
    """A session of an old model goes on "reencoded", as the new one would from its last 1,024 characters; or 409."""
    new = random_checkpoint(seed=5)
    registry.promote(tiny.save(tmp_path))
    service = Service(CHECKPOINT_DIR=str(tmp_path), REDIS_URL=redis_server.url, **QUICK)
    with service:
        made = [service.generate(**{**PAYLOAD, "max_chars": 1500}) for _ in range(2)]
    text = "hello" + made[0]["text"]
    registry.promote(new.save(tmp_path))
    with service:
        id = made[0]["session_id"]
        refused = service.post(session_id=id, max_chars=5, on_new_model="conflict")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_changed")
        hidden = (tmp_path / tiny.file_name).rename(tmp_path / "hidden")
        assert service.client.get(f"/sessions/{id}/stream").json()["error"]["code"] == "model_changed"
        hidden.rename(tmp_path / tiny.file_name)
        assert text_of(service.resume(id)) == made[0]["text"]
        on = service.generate(session_id=id, prompt="a", max_chars=40, temperature=0.9)
        assert (on["reencoded"], on["position"]) == (True, 1546)
        assert text_of(service.resume(id)) == on["text"]
        more = service.generate(session_id=id, max_chars=40, temperature=0.9)
        assert more["reencoded"] is False
    stepper, _ = choose(new.network(), 1)
    prompt = text[-1024:] + "a"
    plain = "".join(write(stepper, ALPHABET, prompt, 80, SamplingParams(0.9), seed=7, start=1505 - 1024))
    assert on["text"] + more["text"] == plain


def test_no_text_need_be_kept(tmp_path: Path, redis_server: RedisServer, tiny: Checkpoint) -> None:
    """SESSION_RECENT_TEXT_CHARS=0: sessions continue, no text of them is stored, and a new model is a conflict."""
    registry.promote(tiny.save(tmp_path))
    settings = {"CHECKPOINT_DIR": str(tmp_path), "REDIS_URL": redis_server.url, "SESSION_RECENT_TEXT_CHARS": "0"}
    new = random_checkpoint(seed=5)
    with Service(**settings) as service:
        made = service.generate(**{**PAYLOAD, "max_chars": 30})
        assert service.generate(session_id=made["session_id"], max_chars=5)["position"] == 40
        assert service.client.get(f"/sessions/{made['session_id']}").json()["recent_text"] == ""
        registry.promote(new.save(tmp_path))
        eventually(lambda: service.client.get("/readyz").json()["model"]["fingerprint"] == new.fingerprint)
        refused = service.post(session_id=made["session_id"], max_chars=5)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_changed")
