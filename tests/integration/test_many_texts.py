"""Many texts of one request: n on /generate, and lists on /score. Each is what it is when it is asked for alone."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from typing import Any

import pytest

from model.network.sampling import MAX_SEED
from tests.conftest import ALPHABET, ENDLESS_CHARS
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
def test_each_of_n_texts_is_the_one_asked_for_alone(service: Service, how: dict[str, Any], stream: bool) -> None:
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
    """256 texts are one request, and single requests beside them are answered before they have all ended."""
    order: list[str] = []

    def generate_many() -> None:
        answer = service.generate(**{**PAYLOAD, "max_chars": 2000}, n=256)
        order.append("many")
        assert len(answer["results"]) == 256
        assert len({result["text"] for result in answer["results"]}) == 256

    thread = threading.Thread(target=generate_many)
    thread.start()
    eventually(lambda: service.client.get("/readyz").json()["in_flight"] > 1)
    service.generate(prompt="me too", max_chars=20)
    order.append("single")
    thread.join()
    assert order == ["single", "many"]


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
