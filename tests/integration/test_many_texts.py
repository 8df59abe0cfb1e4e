"""Many texts of one request: n on /generate, and lists on /score. Each is what it is when it is requested alone."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from model.network.sampling import MAX_SEED
from tests.conftest import ALPHABET, ENDLESS_CHARS
from tests.disconnecting_clients import in_flight, scoring_is_full, sent_score
from tests.scrape import scraped
from tests.servers import Service, eventually

PAYLOAD: dict[str, Any] = {"prompt": "hello there " * 5, "seed": 11, "temperature": 0.9, "max_chars": 60}
TUNED: dict[str, Any] = {
    **PAYLOAD,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "typical_p": 0.9,
    "logit_bias": {"e": -1.0},
    "stop": ["ab", "e"],
    "min_chars": 20,
}


def streamed(service: Service, **body: Any) -> tuple[dict[int, str], dict[int, dict[str, Any]]]:
    """The texts of a stream by index, and their results."""
    events = service.events(**body)
    assert [events[0].name, events[-1].name] == ["start", "done"]
    assert events[0].data["n"] == body["n"]
    texts: dict[int, str] = defaultdict(str)
    results = {e.data["index"]: e.data for e in events if e.name == "result"}
    for event in events:
        if event.name == "message":
            texts[event.data["index"]] += event.data["text"]
    return texts, results


@pytest.mark.parametrize("how", [PAYLOAD, TUNED, {"prompt": "", "seed": MAX_SEED - 3, "max_chars": 30}])
@pytest.mark.parametrize("stream", [False, True])
def test_each_of_n_texts_is_the_one_requested_alone(service: Service, how: dict[str, Any], stream: bool) -> None:
    """Text i has the request's seed plus i, and is bit for bit the text of that seed; its result carries its index."""
    n = 12
    if stream:
        texts, results = streamed(service, **how, n=n)
    else:
        answer = service.generate(**how, n=n)
        results = {result["index"]: result for result in answer["results"]}
        texts = {i: result["text"] for i, result in results.items()}
        assert answer["usage"]["generated_chars"] == sum(map(len, texts.values()))
    assert sorted(results) == list(range(n))
    for i in range(n):
        alone = service.generate(**{**how, "seed": (how["seed"] + i) & MAX_SEED})
        assert texts[i] == alone["text"]
        assert (results[i]["finish_reason"], results[i]["seed"]) == (alone["finish_reason"], alone["seed"])
        assert results[i]["generated_chars"] == len(texts[i])


def test_log_probabilities_come_with_each_text(service: Service) -> None:
    """The same as alone, number for number."""
    answer = service.generate(**PAYLOAD, n=3, logprobs=2)
    for i, result in enumerate(answer["results"]):
        alone = service.generate(**{**PAYLOAD, "seed": PAYLOAD["seed"] + i}, logprobs=2)
        assert [e["logprob"] for e in result["logprobs"]] == [e["logprob"] for e in alone["logprobs"]]
        assert [t for e in result["logprobs"] for t, *_ in e["top"]] == [
            t for e in alone["logprobs"] for t, *_ in e["top"]
        ]


def prompt_chars(service: Service) -> float:
    return scraped(service.client.get("/metrics").text)["longhand_prompt_tokens_total"]


def test_the_prompt_is_read_once(service: Service) -> None:
    """The engine counts the characters of the prompt once, however many texts continue it."""
    before = prompt_chars(service)
    prompt = "to be or not to be that is the question " * 10
    service.generate(prompt=prompt, n=20, max_chars=5)
    assert prompt_chars(service) - before <= len(prompt)


def test_more_texts_than_places_are_generated_all(service: Service) -> None:
    """256 texts are one request, and each is another one."""
    answer = service.generate(**PAYLOAD, n=256)
    assert len({result["text"] for result in answer["results"]}) == 256


MANY = [
    ("/generate", {"n": 30, "max_chars": ENDLESS_CHARS}),
    ("/v1/completions", {"n": 30, "max_tokens": ENDLESS_CHARS}),
]
SEVERAL_PROMPTS = ("/v1/completions", {"prompt": ["hello", "so", "it", "is"] * 8, "max_tokens": ENDLESS_CHARS})


def begun(service: Service, streams: ExitStack, path: str, **body: Any) -> httpx.Response:
    """A stream that was accepted: its head is here, its texts may wait for places."""
    response = streams.enter_context(service.client.stream("POST", path, json={**body, "stream": True}))
    assert response.status_code == 200, response.read()
    return response


@pytest.mark.parametrize(("path", "body"), [*MANY, SEVERAL_PROMPTS])
def test_requests_for_many_texts_leave_places_to_others(endless: Service, path: str, body: dict[str, Any]) -> None:
    """Two of them, of 8 slots and 8 places, take 12 together and one more at most; other requests are accepted."""
    with ExitStack() as streams:
        begun(endless, streams, path, **body)
        eventually(lambda: in_flight(endless) == 12)
        begun(endless, streams, path, **body)
        eventually(lambda: in_flight(endless) == 13)
        for _ in range(3):
            begun(endless, streams, "/generate", max_chars=5)
        assert in_flight(endless) == 16
    eventually(lambda: in_flight(endless) == 0)


def test_choices_are_generated_together(endless: Service) -> None:
    """A stream of two texts that do not end has parts of both."""
    with ExitStack() as streams:
        response = begun(endless, streams, "/v1/completions", n=2, max_tokens=ENDLESS_CHARS)
        indices = (event.json()["choices"][0]["index"] for event in EventSource(response).iter_sse())
        assert {0, 1} <= set(itertools.islice(indices, 40))
    eventually(lambda: in_flight(endless) == 0)


@pytest.fixture(scope="module")
def one_slot(store: Path) -> Iterator[Service]:
    settings = {"SLOTS": "1", "MAX_WAITING": "16", "MAX_CHARS": str(ENDLESS_CHARS)}
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL="", **settings) as service:
        yield service


@pytest.mark.parametrize(("path", "body"), MANY)
def test_no_text_gets_a_slot_after_its_client_has_left(one_slot: Service, path: str, body: dict[str, Any]) -> None:
    """With one slot: the texts of a request end together, not one after the other."""
    with ExitStack() as streams:
        begun(one_slot, streams, path, **body)
        eventually(lambda: in_flight(one_slot) >= 2)
        before = scraped(one_slot.client.get("/metrics").text)["longhand_queue_time_seconds_count"]
    eventually(lambda: in_flight(one_slot) == 0)
    after = scraped(one_slot.client.get("/metrics").text)["longhand_queue_time_seconds_count"]
    assert after - before <= 1  # one may get it in the moment between


@pytest.mark.parametrize(("path", "body"), [("/generate", {"max_chars": 3}), ("/v1/completions", {"max_tokens": 3})])
def test_a_stream_that_waits_for_a_slot_has_its_head(one_slot: Service, path: str, body: dict[str, Any]) -> None:
    """At once, not with the first comment or text: the client knows that it was accepted."""
    with ExitStack() as streams:
        with ExitStack() as first:
            begun(one_slot, first, "/generate", max_chars=ENDLESS_CHARS)
            eventually(lambda: in_flight(one_slot) == 1)
            response = begun(one_slot, streams, path, **body)
            assert in_flight(one_slot) == 2
        assert not response.read().startswith(b":"), "the head came with a comment"
    eventually(lambda: in_flight(one_slot) == 0)


def refused(service: Service) -> float:
    return scraped(service.client.get("/metrics").text)["longhand_requests_refused_total"]


@pytest.mark.parametrize(("path", "body"), [*MANY, SEVERAL_PROMPTS])
def test_only_requests_are_counted_as_refused(endless: Service, path: str, body: dict[str, Any]) -> None:
    """The texts of a request that find no place wait for one, and are no refusals."""
    with ExitStack() as streams:
        single = [ExitStack() for _ in range(15)]
        for element in single:
            streams.enter_context(element)
            begun(endless, element, "/generate", max_chars=ENDLESS_CHARS)
        before = refused(endless)
        begun(endless, streams, path, **body)
        for _ in range(4):
            eventually(lambda: in_flight(endless) == 16)
            single.pop().close()
        assert refused(endless) == before
        # The engine counts a text that was left until its next block, and another request may take its place then.
        eventually(lambda: endless.post(max_chars=1).status_code == 429)
        assert refused(endless) == before + 1
    eventually(lambda: in_flight(endless) == 0)


def test_a_list_whose_client_has_left_is_not_scored(endless: Service) -> None:
    """It is read beside texts that are generated, for a share of the time; its reading ends early."""
    rng = random.Random(4)
    lines = ["".join(rng.choices(ALPHABET.characters, k=20_000)) for _ in range(40)]
    with ExitStack() as streams:
        for _ in range(8):
            begun(endless, streams, "/generate", max_chars=ENDLESS_CHARS)
        with sent_score(endless, lines):
            eventually(lambda: in_flight(endless) > 8)
        eventually(lambda: in_flight(endless) == 8)
    eventually(lambda: in_flight(endless) == 0)


def test_a_long_text_whose_client_has_left_is_not_scored(endless: Service) -> None:
    """Two are scored at a time; when their clients have left, another one is."""
    with ExitStack() as streams:
        begun(endless, streams, "/generate", max_chars=ENDLESS_CHARS)  # beside it, scoring makes pauses
        with scoring_is_full(endless):
            pass
        eventually(lambda: endless.client.post("/score", json={"text": "hello"}).status_code == 200)


def test_a_client_that_leaves_frees_all_slots(endless: Service) -> None:
    """Also while texts wait for a slot."""
    body = {**PAYLOAD, "max_chars": ENDLESS_CHARS, "n": 256, "stream": True}
    with endless.client.stream("POST", "/generate", json=body) as response:
        next(response.iter_text())
    eventually(lambda: endless.client.get("/readyz").json()["in_flight"] == 0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": 257}, "n"),
        ({"n": 2, "session_id": "x" * 30}, "n"),
        ({"n": "2"}, "n"),
    ],
)
def test_n_is_checked(service: Service, body: dict[str, Any], field: str) -> None:
    """422 names the field."""
    response = service.post(**body)
    assert (response.status_code, response.json()["error"]["field"]) == (422, field)


def test_n_has_no_idempotency_key(service: Service) -> None:
    """The texts are not stored, so the key could not find them again."""
    response = service.client.post("/generate", json={"n": 2}, headers={"Idempotency-Key": "k" * 20})
    assert (response.status_code, response.json()["error"]["field"]) == (422, "Idempotency-Key")


def test_a_list_is_scored_as_its_texts_are_alone(service: Service) -> None:
    """300 lines of all lengths, in their order: the stepper's losses, which are the network's within 1e-4."""
    rng = random.Random(5)
    lines = ["".join(rng.choices(ALPHABET.characters, k=rng.choice([1, 7, 30, 200]))) for _ in range(300)]
    answer = service.client.post("/score", json={"text": lines}).json()
    assert [result["index"] for result in answer["results"]] == list(range(300))
    assert [result["characters"] for result in answer["results"]] == [len(line) for line in lines]
    assert answer["characters"] == sum(map(len, lines))
    mean = sum(r["nats_per_character"] * r["characters"] for r in answer["results"]) / answer["characters"]
    assert answer["nats_per_character"] == pytest.approx(mean)
    for i in range(0, 300, 17):
        alone = service.client.post("/score", json={"text": lines[i]}).json()
        for name in ("bits_per_character", "nats_per_character"):
            assert answer["results"][i][name] == pytest.approx(alone[name], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"text": []}, "text", "a list of 1 to"),
        ({"text": ["a", ""]}, "text", "a list of 1 to"),
        ({"text": ["a", 5]}, "text", "a list of 1 to"),
        ({"text": ["a", "bÉ"]}, "text.1", "'É'"),
        ({"text": ["a"], "logprobs": 2}, "logprobs", "null with a list"),
        ({"text": ["a"], "session_id": "x" * 30}, "session_id", "null with a list"),
    ],
)
def test_a_list_is_checked(service: Service, body: dict[str, Any], field: str, says: str) -> None:
    """422 names the text."""
    response = service.client.post("/score", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["field"]) == (422, field)
    assert says in error["message"]
