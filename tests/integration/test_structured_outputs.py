"""Structured outputs over HTTP: whole texts, the same in every kind of answer, resumed, rewound and forked."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.stepper.generate import generate
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary
from tests.conftest import ALPHABET, random_checkpoint
from tests.integration.application import Application
from tests.integration.clients import Client, at_once
from tests.scrape import scraped
from tests.servers import RedisServer, Service, eventually, read_events

LINE = r"[a-z]+( [a-z]+)*\n"
BODY: dict[str, Any] = {"prompt": "it was ", "seed": 5, "structured_outputs": {"regex": LINE}}
LONG: dict[str, Any] = {"prompt": "it ", "seed": 9, "structured_outputs": {"regex": "(?:[a-m]{2} |[n-z]{3}!)+\n"}}


def test_a_text_is_that_of_the_plain_loop(service: Service, tiny: Checkpoint) -> None:
    """Whole, with the reason and the cost that one network call per character gives, streamed or not, alone or of n."""
    automaton = StructuredOutputs("regex", LINE).compile(ALPHABET)
    network = tiny.network()
    for max_chars in (2, 3, 12, 80):
        body = {**BODY, "max_chars": max_chars}
        answer = service.generate(**body)
        assert re.fullmatch(LINE, answer["text"])
        assert service.streamed_text(**body) == answer["text"]
        expected = generate(network, ALPHABET, BODY["prompt"], max_chars, seed=5, automaton=automaton)
        if expected.text == answer["text"]:  # the arithmetic differs in the last bits
            assert answer["finish_reason"] == expected.finish_reason
            assert answer["mask_bits"] == pytest.approx(-expected.mask_logprob / 0.6931471805599453, abs=0.02)
        many = service.generate(**body, n=4)["results"]
        for i, result in enumerate(many):
            alone = service.generate(**{**body, "seed": 5 + i})
            assert (result["text"], result["mask_bits"]) == (alone["text"], alone["mask_bits"])
    assert "mask_bits" not in service.generate(prompt="it was ", max_chars=5)


def test_finish_reasons(service: Service) -> None:
    """stop: nothing may follow. length: the text matches, and more could follow beyond max_chars."""
    cases = {("tea", 50): "stop", ("tea", 3): "stop", ("[a-z]+", 20): "length", ("a{2}(?:bb)*", 3): "stop"}
    for (pattern, max_chars), reason in cases.items():
        answer = service.generate(structured_outputs={"regex": pattern}, max_chars=max_chars, seed=1)
        assert re.fullmatch(pattern, answer["text"])
        assert answer["finish_reason"] == reason, (pattern, max_chars, answer)
    empty = service.generate(prompt="a", structured_outputs={"regex": ""}, max_chars=9)
    assert (empty["text"], empty["finish_reason"], empty["mask_bits"], empty["position"]) == ("", "stop", 0.0, 1)


def test_choices(service: Service) -> None:
    """The text is one of them; the session goes on after it."""
    choices = ["yes", "no", "perhaps not"]
    answer = service.generate(prompt="well ", structured_outputs={"choice": choices}, max_chars=11, seed=3)
    assert answer["text"] in choices
    again = service.generate(session_id=answer["session_id"], prompt=" so ", max_chars=30, seed=3)
    direct = service.generate(prompt=f"well {answer['text']} so ", max_chars=30, seed=3)
    assert again["text"] == direct["text"]


def test_every_parameter_composes(service: Service) -> None:
    """Filters, penalties and biases choose among what is allowed."""
    tuned: dict[str, Any] = {"temperature": 0.7, "top_k": 1, "top_p": 0.5, "min_p": 0.3, "typical_p": 0.8}
    tuned |= {"repetition_penalty": 1.3}
    tuned |= {"frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"q": 50, "a": -100}}
    for name, value in [*tuned.items(), ("temperature", 0)]:
        answer = service.generate(**{**BODY, name: value}, max_chars=40)
        assert re.fullmatch(LINE, answer["text"]), name
    biased = service.generate(structured_outputs={"regex": "[aq]{9}"}, logit_bias={"a": 100}, max_chars=9)
    assert biased["text"] == "aaaaaaaaa"


def test_log_probabilities_show_the_mask(service: Service) -> None:
    """What is not allowed has the probability 0 in the distribution that was sampled from."""
    answer = service.generate(**{**BODY, "structured_outputs": {"regex": "[ab]{12}"}}, max_chars=12, logprobs=10)
    for entry, character in zip(answer["logprobs"], answer["text"], strict=True):
        by_character = {c: probability for c, _, probability in entry["top"]}
        assert all(probability == 0 for c, probability in by_character.items() if c not in "ab")
        assert entry["probability"] > 0
        assert character in "ab"


def test_a_resumed_stream_continues_with_the_next_character(service: Service) -> None:
    """From any position; the end has the whole text's cost, and a complete turn is sent again as it was."""
    events = service.events(**LONG, max_chars=150)
    text = "".join(e.data["text"] for e in events if e.name == "message")
    session_id, done = events[0].data["session_id"], events[-1].data
    for after in (3, 4, 40, 3 + len(text)):
        again = service.resume(session_id, after)
        if after == 3 + len(text):
            continue
        assert "".join(e.data["text"] for e in again if e.name == "message") == text[after - 3 :]
        assert again[-1].data == done


def test_rewinding_and_forking_in_the_middle(service: Service) -> None:
    """The session is as it was there: the same characters follow, constrained anew or not at all."""
    first = service.generate(**LONG, max_chars=60)
    text, session_id = first["text"], first["session_id"]
    for cut in (1, 7, len(text) - 1):
        fork = service.client.post(f"/sessions/{session_id}/fork", json={"position": 3 + cut}).json()
        free = service.generate(session_id=fork["session_id"], max_chars=20, seed=2)
        direct = service.generate(prompt="it " + text[:cut], max_chars=20, seed=2)
        assert free["text"] == direct["text"]
    again = {"structured_outputs": {"regex": "[abc]{5}"}, "max_chars": 5, "seed": 4}
    rewound = service.generate(session_id=session_id, position=3 + 7, **again)
    assert rewound["text"] == service.generate(prompt="it " + text[:7], **again)["text"]


@pytest.fixture(scope="module")
def lone(store: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service of one worker, for tests that kill it or look at its memory."""
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "SNAPSHOT_INTERVAL_S": "0.05"}
    with Service(WORKERS="1", LEASE_S="2", MAX_CHARS="1000000", **settings) as service:
        yield service


def test_texts_survive_kills(lone: Service) -> None:
    """kill -9 of the worker in the middle of a constrained text, twice: it goes on with its next character."""
    body = {**LONG, "structured_outputs": {"regex": "(?:[a-m]{2} |[n-z]{3}!)+"}, "max_chars": 20_000}
    expected = lone.generate(**body)
    text, session_id, after, done = "", "", 3, dict[str, Any]()
    kills = 0
    while not done:
        path = f"/sessions/{session_id}/stream"
        request: dict[str, Any] = {"method": "POST", "url": "/generate", "json": {**body, "stream": True}}
        if session_id:
            request = {"method": "GET", "url": path, "headers": {"Last-Event-ID": str(after)}}
        try:
            with lone.client.stream(**request) as response:
                for event in read_events(response):
                    if event.name == "start":
                        session_id = event.data["session_id"]
                    elif event.name == "message":
                        text, after = text + event.data["text"], event.id
                        if kills < 2 and len(text) > 3000 * (kills + 1):
                            # What the killed worker sent may reach here before the next one is there.
                            eventually(lambda: bool(lone.workers()))
                            lone.kill_worker(lone.workers()[0])
                            kills += 1
                    elif event.name == "done":
                        done = event.data
        except httpx.TransportError:
            eventually(lambda: lone.client.get("/readyz").status_code == 200)
    assert kills == 2
    assert text == expected["text"]
    assert re.fullmatch(body["structured_outputs"]["regex"], text)
    assert (done["mask_bits"], done["finish_reason"]) == (expected["mask_bits"], expected["finish_reason"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": "x"}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(?=a)b"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a)\\1"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "\\xzz"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a|b)*a(a|b){18}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(a{1,1000}){1,1000}"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "(" * 3000 + ")" * 3000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "€"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["Ж", "€"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": {"type": "text"}}}, "structured_outputs.json.type"),
        ({"structured_outputs": {"json": {"type": "null", "not": {}}}}, "structured_outputs.json.not"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a{9}"}, "max_chars": 8}, "max_chars"),
        ({"structured_outputs": {"regex": "a"}, "max_chars": 0}, "max_chars"),
        ({"structured_outputs": {"regex": "a"}, "stop": ["x"]}, "stop"),
        ({"structured_outputs": {"regex": "a"}, "min_chars": 1}, "min_chars"),
        ({"structured_outputs": {"regex": "a"}, "items": 1}, "structured_outputs"),
    ],
)
def test_bad_values_are_named(service: Service, body: dict[str, Any], field: str) -> None:
    """A 422 with field, value and expectation; hostile patterns too, within two seconds."""
    started = time.monotonic()
    response = service.post(**{"max_chars": 20, **body})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["field"] == field
    assert error["expected"]
    assert "value" in error
    assert time.monotonic() - started < 2


def test_a_budget_below_the_shortest_text_is_refused_with_that_length(service: Service) -> None:
    """So that a client knows what to ask for."""
    response = service.post(structured_outputs={"regex": "tea|coffee"}, max_chars=2)
    assert "at least 3" in response.json()["error"]["expected"]


def test_hostile_patterns_do_not_disturb_other_texts(lone: Service) -> None:
    """While many of them are refused, a stream goes on, and the memory is back afterwards."""
    worker = lone.workers()[0]
    lone.post(structured_outputs={"regex": "(?:.?){4000}x"}, max_chars=9)
    before = _memory(worker)
    statuses: list[int] = []

    def attack(n: int) -> None:
        for k in range(4):
            pattern = f"(?:.{{0,{n + 1}}}[a-f]){{20,{40 + k}}}(a|b)*a(a|b){{{14 + k}}}"
            statuses.append(lone.post(structured_outputs={"regex": pattern}, max_chars=900).status_code)

    client = Client(lone.url, enough=lambda: len(statuses) == 24)
    threads = at_once([lambda n=n: attack(n) for n in range(6)])  # type: ignore[misc]
    with contextlib.closing(client):
        client.turn(prompt="a", max_chars=1_000_000, seed=1)
    for thread in threads:
        thread.join(60)
    assert statuses == [422] * 24
    assert len(client.text) > 1000
    assert max(client.gaps_s) < 2
    assert _memory(worker) < before + (64 << 20)


def _memory(pid: int) -> int:
    """The resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def test_equal_specifications_are_compiled_once(service: Service) -> None:
    """The metrics count what was found in the cache and what was not."""

    def lookups() -> tuple[float, float]:
        matches = scraped(service.client.get("/metrics").text)
        names = ("hits", "misses")
        return tuple(matches[f"longhand_structured_outputs_cache_{name}_total"] for name in names)  # type: ignore[return-value]

    pattern = "[a-e]{3}, [f-h]{4}"
    hits, misses = lookups()
    service.post(structured_outputs={"regex": "never (asked|before)"}, max_chars=30)
    n = 12
    for _ in range(n):
        service.generate(structured_outputs={"regex": pattern.replace(", ", " ")}, max_chars=30)
    new_hits, new_misses = lookups()
    assert new_hits + new_misses - hits - misses >= n + 1
    assert new_hits - hits >= n - 4  # each worker compiles once


OPENAI: dict[str, Any] = {"prompt": "it was ", "seed": 5, "max_tokens": 40}


def test_the_openai_protocol_has_the_same_texts(service: Service) -> None:
    """structured_outputs, and response_format as in the protocol; streamed and with n."""
    own = service.generate(**BODY, max_chars=40)
    body = {**OPENAI, "structured_outputs": {"regex": LINE}}
    choice = service.client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"] == own["text"]
    assert choice["finish_reason"] == own["finish_reason"]
    text = service.client.post("/v1/completions", json={**OPENAI, "response_format": {"type": "text"}}).json()
    plain = service.client.post("/v1/completions", json=OPENAI).json()
    assert text["choices"] == plain["choices"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format.json_schema.schema.type",
        ),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "response_format"),
        ({"structured_outputs": {"regex": "a{9}"}, "max_tokens": 8}, "max_tokens"),
        ({"structured_outputs": {"regex": "a"}, "max_tokens": 0}, "max_tokens"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "min_tokens"),
        ({"structured_outputs": {"regex": "a"}, "stop": "x"}, "stop"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
    ],
)
def test_bad_values_of_completions_are_named(service: Service, body: dict[str, Any], field: str) -> None:
    """With the protocol's own names. The tests' vocabulary has no braces, so it has no JSON object."""
    response = service.client.post("/v1/completions", json={**OPENAI, **body})
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["param"] == field


def test_json(tmp_path: Path) -> None:
    """A model with a vocabulary that can write JSON: a schema, a pydantic model, an object, in both protocols."""
    vocab = Vocabulary("\n" + "".join(map(chr, range(0x20, 0x7F))))
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
    }
    registry.promote(random_checkpoint(alphabet=vocab).save(tmp_path))
    with Application(CHECKPOINT_DIR=str(tmp_path)) as service:
        for seed in range(5):
            answer = service.generate(structured_outputs={"json": schema}, max_chars=60, seed=seed)
            value = json.loads(answer["text"])
            assert list(value) == ["name", "age"]
            assert answer["finish_reason"] == "stop"
            wrapped = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
            body = {"max_tokens": 60, "seed": seed, "response_format": wrapped}
            completion = service.client.post("/v1/completions", json=body).json()
            assert completion["choices"][0]["text"] == answer["text"]
            body = {"max_tokens": 40, "seed": seed, "response_format": {"type": "json_object"}}
            completion = service.client.post("/v1/completions", json=body).json()
            assert isinstance(json.loads(completion["choices"][0]["text"]), dict)
