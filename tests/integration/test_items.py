"""Lists over HTTP: items are generated whole, in an order that only the seed decides, and each is scored alone."""

from __future__ import annotations

import itertools
import json
import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.cli import main
from model.stepper.items import PATIENCE
from service.openapi.answers import ItemsAnswer, ScoreItemsAnswer
from tests.integration.application import Application
from tests.integration.lists import TRAINING, VOCAB, list_checkpoint, store_of, texts
from tests.scrape import scraped
from tests.servers import RedisServer, Service, eventually


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a model of a list is promoted."""
    return store_of(tmp_path_factory.mktemp("lists"), list_checkpoint())


@pytest.fixture(scope="module")
def lists(models: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service of a model of a list, with 8 slots: fewer than items have lanes."""
    with Service(CHECKPOINT_DIR=str(models), REDIS_URL=redis_server.url) as service:
        yield service


def sampled(models: Path, capsys: pytest.CaptureFixture[str], items: int, **options: Any) -> list[dict[str, Any]]:
    """What `sample --items` prints; options as in a request."""
    command = ["sample", options.pop("prompt", ""), "--store", str(models), "--items", str(items), "--json"]
    if options.pop("unique", True) is False:
        command.append("--no-unique")
    for name, value in options.items():
        command.append("--" + name.replace("_", "-"))
        if value is not True:
            command.append(json.dumps(value))
    capsys.readouterr()
    assert main(command) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def streamed(service: Service, **body: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The items of a stream, one an event, and the data of its last event."""
    start, *events, done = service.events(**body)
    assert (start.name, start.data["items"], done.name) == ("start", body["items"], "done"), done
    assert {event.name for event in events} <= {"item"}
    assert [event.data.pop("index") for event in events] == list(range(len(events)))
    return [event.data for event in events], done.data


def running(service: Service) -> float:
    """The slots that are in use."""
    return scraped(service.client.get("/metrics").text)["longhand_slots_in_use"]


ENDLESS: dict[str, Any] = {"items": 100_000, "unique": False, "seed": 8, "logit_bias": {"\n": -4.0}}
"""So many long items that they do not end by themselves while a test runs."""

WISHES: list[dict[str, Any]] = [
    {"items": 150, "seed": 1},
    {"items": 1, "seed": 9, "temperature": 0.7, "top_p": 0.9},
    {"items": 60, "seed": 2**63 - 1, "prompt": "ab"},
    {"items": 40, "seed": 3, "novel": True, "max_chars": 5, "min_chars": 2},
    {"items": 300, "seed": 4, "unique": False},
    {"items": 50, "seed": 5, "prompt": "c", "repetition_penalty": 1.5, "presence_penalty": 0.5},
    {"items": 30, "seed": 6, "logit_bias": {"\n": -2.0, "a": 1.0}},
]


@pytest.mark.parametrize("wish", WISHES)
def test_items_are_those_of_the_command_line(
    lists: Service, models: Path, wish: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same items in the same order with the same log-probabilities, together and streamed."""
    answer = lists.generate(**wish)
    ItemsAnswer.model_validate(answer)
    assert answer["items"] == sampled(models, capsys, **wish)
    assert (answer["finish_reason"], len(answer["items"])) == ("complete", wish["items"])
    items, done = streamed(lists, **wish)
    assert items == answer.pop("items")
    assert done == answer


def test_items_hold_what_the_request_asks_for(lists: Service) -> None:
    """Whole, different, novel, of these lengths, with the prompt as their beginning; a training item says so."""
    answer = lists.generate(items=100, prompt="a", novel=True, min_chars=2, max_chars=6, seed=1)
    matches = texts(answer["items"])
    assert len(set(matches)) == 100
    assert all(item.startswith("a") and 2 <= len(item) <= 6 and set(item) <= set("abc") for item in matches)
    assert not set(matches) & set(TRAINING)
    assert answer["usage"] == {"prompt_chars": 1, "generated_chars": sum(map(len, matches)) - 100}
    assert answer["generated"] + sum(answer["rejected"].values()) == answer["candidates"]
    known = lists.generate(items=100, seed=1)["items"]
    assert {item["text"] for item in known if item["seen_in_training"]} == set(TRAINING) & set(texts(known))


def test_a_seed_is_chosen_and_returned(lists: Service) -> None:
    """A request without a seed can be repeated with the one that the answer names."""
    first, other = lists.generate(items=30), lists.generate(items=30)
    assert first["items"] != other["items"]
    assert lists.generate(items=30, seed=first["seed"])["items"] == first["items"]
    assert lists.generate(items=10, seed=first["seed"])["items"] == first["items"][:10]


def test_load_changes_no_item(lists: Service) -> None:
    """Beside texts, other items and clients that leave, with more rows than slots: bit for bit the same items."""
    wishes = [{**wish, "seed": 40 + n} for n, wish in enumerate(WISHES)]
    expected = [lists.generate(**wish)["items"] for wish in wishes]
    rng = random.Random(6)

    def disturb(n: int) -> None:
        for _ in range(12):
            if n % 3 == 0:
                lists.post(max_chars=rng.randint(1, 300), prompt="a" * rng.randint(0, 40))
            elif n % 3 == 1:
                lists.post(items=rng.randint(1, 60), prompt=rng.choice(["", "b"]))
            else:
                with lists.client.stream("POST", "/generate", json={"items": 500, "stream": True}) as response:
                    next(response.iter_bytes())

    def generate(wish: dict[str, Any], items: list[dict[str, Any]]) -> None:
        n_equal = 0
        while n_equal < 3:
            response = lists.post(**wish)
            assert response.status_code in (200, 429), response.text
            if response.status_code == 200:
                assert response.json()["items"] == items, wish
                n_equal += 1

    with ThreadPoolExecutor(6 + len(wishes)) as pool:
        futures = [pool.submit(disturb, n) for n in range(6)]
        futures += [pool.submit(generate, *pair) for pair in zip(wishes, expected, strict=True)]
    for future in futures:
        future.result()
    eventually(lambda: lists.client.get("/readyz").json()["in_flight"] == 0)


def test_a_wish_that_cannot_be_met_ends_with_what_there_is(lists: Service) -> None:
    """All items of one or two characters, each once; the answer says why there are no more, after how many tries."""
    answer = lists.generate(items=500, max_chars=2, seed=1)
    matches = set(texts(answer["items"]))
    assert matches <= {"".join(item) for n in (1, 2) for item in itertools.product("abc", repeat=n)}
    assert len(matches) == len(answer["items"]) == answer["generated"] < 13
    assert (answer["finish_reason"], answer["requested"]) == ("exhausted", 500)
    assert PATIENCE <= answer["candidates"] <= PATIENCE * (answer["generated"] + 1)


def test_the_time_that_is_up_ends_with_what_there_is(lists: Service) -> None:
    """The items so far are the first of those that more time brings."""
    items, done = streamed(lists, **ENDLESS, timeout_s=0.3)
    assert (done["finish_reason"], done["generated"]) == ("timeout", len(items))
    assert 0 < len(items) < 100_000
    assert lists.generate(**{**ENDLESS, "items": 5})["items"] == items[:5]


def test_others_are_answered_while_items_are_generated(lists: Service) -> None:
    """A hundred thousand items have every slot, and a text beside them does not wait: parts of lanes end for it."""
    has_ended = threading.Event()

    def read() -> None:
        with lists.client.stream("POST", "/generate", json={**ENDLESS, "stream": True}) as response:
            for _ in response.iter_raw():
                if has_ended.is_set():
                    return

    reader = threading.Thread(target=read)
    reader.start()
    eventually(lambda: running(lists) == 8)
    n_running = []
    for seed in range(20):
        assert lists.generate(max_chars=20, seed=seed)["finish_reason"] == "length"
        n_running.append(running(lists))
    has_ended.set()
    reader.join()
    assert max(n_running) == 8


@pytest.mark.parametrize("prompt", ["", "ab"])
def test_a_client_that_leaves_or_reads_nothing_holds_no_slot(lists: Service, prompt: str) -> None:
    """What is generated ahead of a client that does not read is bounded, and a client that has left has no slot."""
    with lists.client.stream("POST", "/generate", json={**ENDLESS, "prompt": prompt, "stream": True}) as response:
        chunks = response.iter_raw()  # kept: with its iterator, the response would be closed
        next(chunks)
        eventually(lambda: lists.client.get("/readyz").json()["in_flight"] == 0)
    body = {**ENDLESS, "prompt": prompt}
    with pytest.raises(httpx.ReadTimeout):
        lists.client.post("/generate", json=body, timeout=0.5)
    eventually(lambda: lists.client.get("/readyz").json()["in_flight"] == 0)


def test_the_prompt_is_read_once(lists: Service) -> None:
    """However many items begin with it."""
    before = scraped(lists.client.get("/metrics").text)["longhand_prompt_tokens_total"]
    prompt = "abcabcabbacbacbbac"
    assert lists.generate(items=50, prompt=prompt, seed=1)["usage"]["prompt_chars"] == len(prompt)
    assert scraped(lists.client.get("/metrics").text)["longhand_prompt_tokens_total"] - before <= len(prompt)


def test_items_begin_no_session(lists: Service) -> None:
    """They are not stored, so an Idempotency-Key could not find them again."""
    assert "session_id" not in lists.generate(items=3)
    response = lists.client.post("/generate", json={"items": 3}, headers={"Idempotency-Key": "k" * 20})
    assert (response.status_code, response.json()["error"]["field"]) == (422, "Idempotency-Key")


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"items": 0}, "items", "greater than or equal to 1"),
        ({"items": 100_001}, "items", "less than or equal to 100000"),
        ({"items": True}, "items", "an integer"),
        ({"items": 3, "n": 2}, "n", "1 with items"),
        ({"items": 3, "session_id": "x" * 32}, "session_id", "null with items"),
        ({"items": 3, "position": 4}, "position", "null with items"),
        ({"items": 3, "stop": ["a"]}, "stop", "none with items"),
        ({"items": 3, "logprobs": 0}, "logprobs", "null with items"),
        ({"items": 3, "prompt": "a\nb"}, "prompt", "without '\\n'"),
        ({"items": 3, "prompt": "axb"}, "prompt", "lacks 'x'"),
        ({"items": 3, "prompt": "abc", "max_chars": 2}, "prompt", "at most max_chars, 2"),
        ({"items": 3, "min_chars": 9, "max_chars": 8}, "min_chars", "at most max_chars, 8"),
        ({"items": 3, "min_chars": 1001}, "min_chars", "at most max_chars, 1000"),
        ({"items": 3, "max_chars": 10**8}, "max_chars", "at most 100000"),
        ({"items": 3, "novel": 1}, "novel", "a boolean"),
        ({"unique": False}, "unique", "items beside it"),
        ({"novel": True}, "novel", "items beside it"),
    ],
)
def test_a_wish_is_checked(lists: Service, body: dict[str, Any], field: str, says: str) -> None:
    """422 names the field, the value and what is accepted, also for a stream."""
    for stream in (False, True):
        response = lists.post(**body, stream=stream)
        error = response.json()["error"]
        assert (response.status_code, error["field"]) == (422, field)
        assert says in error["message"]
        assert "value" in error
        assert "expected" in error


def test_a_model_of_a_text_has_no_items(service: Service) -> None:
    """Neither generated nor ranked."""
    error = service.post(items=3).json()["error"]
    assert error["field"] == "items"
    assert "a model of a list" in error["message"]
    response = service.client.post("/score", json={"text": ["a"], "rank_by": "bits"})
    assert (response.status_code, response.json()["error"]["field"]) == (422, "rank_by")


def test_novel_items_need_the_hashes(tmp_path: Path) -> None:
    """A model without the set says so; its items are not known to be seen or not."""
    store = store_of(tmp_path, list_checkpoint(training=()))
    with Application(CHECKPOINT_DIR=str(store)) as service:
        error = service.post(items=3, novel=True).json()["error"]
        assert (error["field"], error["expected"]) == ("novel", "false")
        assert {item["seen_in_training"] for item in service.generate(items=3)["items"]} == {None}


# ---- scores


def scores(service: Service, items: list[str], **options: Any) -> list[dict[str, Any]]:
    """The scores of items, in their order."""
    response = service.client.post("/score", json={"text": items, **options})
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    assert [result.pop("index") for result in results] == list(range(len(items)))
    return results


def test_an_item_has_the_same_score_in_every_request(lists: Service) -> None:
    """Bit for bit: alone, among hundreds of others, in another order, beside generated texts, and when generated."""
    generated = lists.generate(items=150, seed=2)["items"]
    items = [*texts(generated), "abc" * 60]
    together = scores(lists, items)
    assert [-score["bits"] * math.log(2) for score in together[:-1]] == pytest.approx(
        [item["logprob"] for item in generated], rel=1e-15
    )
    assert [scores(lists, [item])[0] for item in items[::11]] == together[::11]
    texts_beside = threading.Thread(target=lambda: lists.post(n=40, max_chars=300))
    texts_beside.start()
    assert scores(lists, items[::-1])[::-1] == together
    texts_beside.join()


def test_the_probabilities_of_all_items_add_up_to_one(tmp_path: Path) -> None:
    """Of a model whose items are short: every item of up to five characters, and the empty one that it generates."""
    store = store_of(tmp_path, list_checkpoint(end_bias=4.0, scale=0.5))
    with Application(CHECKPOINT_DIR=str(store)) as service:
        (empty,) = service.generate(items=1, min_chars=0, max_chars=0, seed=1)["items"]
        assert empty["text"] == ""
        items = ["".join(item) for n in range(1, 6) for item in itertools.product("abc", repeat=n)]
        together = scores(service, items)
    rest = math.fsum(2.0 ** -score["bits"] for score in together)
    assert 0.02 < rest < 0.2
    assert math.exp(empty["logprob"]) + rest == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("rank_by", [None, "bits", "bits_per_character"])
def test_scores_are_those_of_the_command_line(
    lists: Service, models: Path, tmp_path: Path, rank_by: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bits, bits per character, the most surprising place and the rank, also of items with unknown characters."""
    items = ["a", "ab", "cabbac", "bbbbbbbbbbbb", "axb", "c" * 90]
    path = tmp_path / "items.txt"
    path.write_text("\n".join(items))
    command = ["score", str(path), "--store", str(models), "--items", "lines", "--each", "--json"]
    assert main([*command, *(["--rank-by", rank_by] if rank_by else [])]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    matches = scores(lists, items, on_unknown="skip", **({"rank_by": rank_by} if rank_by else {}))
    assert [score.pop("characters") for score in matches] == [2, 3, 7, 13, 4, 91]
    assert [{"text": item, **score} for item, score in zip(items, matches, strict=True)] == printed
    assert (matches[4]["bits"], matches[4]["rank"], matches[4]["unknown"]) == (None, 100.0, "x")


def test_all_items_together_are_their_mean(lists: Service) -> None:
    """Over all characters, ends counted; an impossible item counts nothing, and alone has no mean."""
    items = ["a", "abc", "cc"]
    answer = lists.client.post("/score", json={"text": [*items, "x"], "on_unknown": "skip"}).json()
    total = sum(score["bits"] for score in scores(lists, items))
    ScoreItemsAnswer.model_validate(answer)
    assert answer["characters"] == 9
    assert answer["bits_per_character"] == pytest.approx(total / 9)
    assert answer["nats_per_character"] == pytest.approx(total / 9 * math.log(2))
    alone = lists.client.post("/score", json={"text": ["x"], "on_unknown": "skip"}).json()
    assert (alone["characters"], alone["bits_per_character"]) == (0, None)


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"text": ["a", "b\nc"]}, "text.1", "without '\\n'"),
        ({"text": ["a", "xa"]}, "text.1", "lacks 'x'"),
        ({"text": ["a", "b" * 200_000]}, "text.1", "got 200000 characters"),
        ({"text": ["a", "\ufeff"]}, "text.1", "byte order mark"),
        ({"text": ["a"], "rank_by": "length"}, "rank_by", "'bits'"),
        ({"text": "a", "rank_by": "bits"}, "rank_by", "a list of items"),
        ({"text": ["a"], "logprobs": 2}, "logprobs", "null with a list"),
    ],
)
def test_items_to_score_are_checked(lists: Service, body: dict[str, Any], field: str, says: str) -> None:
    """422 names the item."""
    response = lists.client.post("/score", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["field"]) == (422, field)
    assert says in error["message"]


def test_a_single_text_is_scored_as_a_text(lists: Service) -> None:
    """Character by character, of several items too; the ends that it contains are characters."""
    answer = lists.client.post("/score", json={"text": f"ab{VOCAB.end}ca"}).json()
    assert (answer["characters"], len(answer["surprisal"])) == (5, 5)
