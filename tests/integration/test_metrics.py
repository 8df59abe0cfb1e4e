"""/metrics of a real service of several processes, after real requests."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from model.checkpoints import registry
from tests.conftest import random_checkpoint
from tests.integration.lists import list_checkpoint, store_of
from tests.scrape import scraped
from tests.servers import RedisServer, Service, eventually

PROMPT = "to be or not to be " * 250  # long enough for its state to be kept


def test_a_scrape_is_the_sum_over_all_processes(store: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    """Two workers, one is killed: counters are exact sums, gauges those of live workers; no session id is exposed."""
    path = random_checkpoint(seed=5).save(tmp_path)
    registry.promote(path)
    service = Service(CHECKPOINT_DIR=str(tmp_path), REDIS_URL=redis_server.url, WORKERS="2", SLOTS="4")
    with service:
        eventually(lambda: scrape(service)["longhand_slots"] == 8)
        answers = [ask(service, prompt=PROMPT, max_chars=30, seed=i) for i in range(12)]
        answers.append(ask(service, max_chars=1000))  # more than a block can hold: there is a second chunk
        answers += [ask(service, prompt="x", max_chars=0), ask(service, prompt="abc", max_chars=500, stop=["a"])]
        expected = totals(answers)
        assert expected["reused"] > 0
        eventually(lambda: scrape(service)["longhand_requests_running"] == 0)
        assert_exact(scrape(service), expected)
        os.kill(service.workers()[0], signal.SIGKILL)
        eventually(lambda: scrape(service)["longhand_model_swaps_total"] == 3)
        answers += [ask(service, prompt="again", max_chars=20) for _ in range(6)]
        expected = totals(answers)
        eventually(lambda: scrape(service)["longhand_requests_running"] == 0)
        (tmp_path / path.name).write_bytes(b"no checkpoint")
        eventually(lambda: scrape(service)["longhand_model_swaps_refused_total"] == 2)
        result = scrape(service)
        assert_exact(result, expected)
        assert (result["longhand_slots"], result["longhand_slots_in_use"], result["longhand_requests_waiting"]) == (
            8,
            0,
            0,
        )
        text = httpx.get(f"{service.url}/metrics").text
        assert not any(answer["session_id"] in text for answer in answers)
        openmetrics = httpx.get(f"{service.url}/metrics", headers={"Accept": "application/openmetrics-text"})
        assert openmetrics.text.endswith("# EOF\n")


def test_requests_for_items_are_counted_once(tmp_path: Path) -> None:
    """However many parts they have, by how they ended, and by model; one that the client leaves is cancelled."""
    folder = store_of(tmp_path, list_checkpoint())
    with Service(CHECKPOINT_DIR=str(folder), METRICS_MODELS="5") as service:
        for seed in range(11):
            assert len(service.generate(items=20, seed=seed)["items"]) == 20
        result = scrape(service)
        assert result['longhand_requests_finished_total{finish_reason="stop"}'] == 11
        assert result['longhand_model_requests_total{model="(other)"}'] == 10
        assert result['longhand_model_requests_total{model="default"}'] == 1
        body = {"items": 100_000, "unique": False, "logit_bias": {"\n": -4.0}, "stream": True}
        with service.client.stream("POST", "/generate", json=body) as response:
            next(response.iter_bytes())
        cancelled = 'longhand_requests_finished_total{finish_reason="cancelled"}'
        eventually(lambda: scrape(service)[cancelled] == 1)
        assert scrape(service)['longhand_requests_finished_total{finish_reason="stop"}'] == 11


def test_refusals_by_key_and_rate_are_counted(store: Path) -> None:
    """By the code of the error: no key and a wrong one, an API key for an operator's route, a rate that is used up."""
    key = {"Authorization": "Bearer a-readers-key-001"}
    settings = {"API_KEYS": "a-readers-key-001", "ADMIN_KEY": "the-operators-key", "RATE_LIMIT": "1/hour"}
    with Service(CHECKPOINT_DIR=str(store), **settings) as service:
        statuses = [
            service.client.post("/generate", json={"max_chars": 1}, headers=headers).status_code
            for headers in ({}, {"Authorization": "Bearer another-key-of-mine"}, key, key)
        ]
        assert statuses == [401, 401, 200, 429]
        assert service.client.get("/jobs", headers=key).status_code == 403
        result = scrape(service)
    counts = {"unauthorized": 2, "forbidden": 1, "model_not_allowed": 0, "rate_limited": 1}
    assert {code: result[f'longhand_requests_denied_total{{code="{code}"}}'] for code in counts} == counts


def test_refusals_and_disconnects_are_counted(store: Path) -> None:
    """With one slot and no queue: running requests are a gauge, refusals and disconnected clients are counted."""
    with Service(CHECKPOINT_DIR=str(store), SLOTS="1", MAX_WAITING="0", MAX_CHARS="100000000") as service:
        with service.client.stream("POST", "/generate", json={"max_chars": 10**8, "stream": True}) as response:
            events = response.iter_bytes()
            next(events)
            eventually(lambda: scrape(service)["longhand_slots_in_use"] == 1)
            assert [service.post(max_chars=1).status_code for _ in range(3)] == [429] * 3
        eventually(lambda: scrape(service)["longhand_slots_in_use"] == 0)
        result = scrape(service)
        assert result["longhand_requests_refused_total"] == 3
        assert result['longhand_requests_finished_total{finish_reason="cancelled"}'] == 1


def ask(service: Service, **body: Any) -> dict[str, Any]:
    """Generate over a new connection, so that any worker may accept it."""
    response = httpx.post(f"{service.url}/generate", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def scrape(service: Service) -> dict[str, float]:
    return scraped(httpx.get(f"{service.url}/metrics").text)


def totals(answers: list[dict[str, Any]]) -> dict[str, float]:
    usage = [answer["usage"] for answer in answers]
    return {
        "prompt": sum(u["prompt_chars"] for u in usage),
        "generated": sum(u["generated_chars"] for u in usage),
        "reused": sum(u["reused_chars"] for u in usage),
        "wrote": sum(u["generated_chars"] > 0 for u in usage),
        "all": len(answers),
        "stopped": sum(answer["finish_reason"] == "stop" for answer in answers),
    }


def assert_exact(result: dict[str, float], expected: dict[str, float]) -> None:
    assert result["longhand_prompt_tokens_total"] == expected["prompt"]
    assert result["longhand_generation_tokens_total"] == expected["generated"]
    assert result["longhand_reused_characters_total"] == expected["reused"]
    assert result["longhand_time_to_first_token_seconds_count"] == expected["wrote"]
    assert result["longhand_queue_time_seconds_count"] == expected["all"]
    assert result['longhand_requests_finished_total{finish_reason="stop"}'] == expected["stopped"]
    length = result['longhand_requests_finished_total{finish_reason="length"}']
    assert length == expected["all"] - expected["stopped"]
    assert result["longhand_requests_refused_total"] == 0
    assert 0 < result["longhand_inter_token_latency_seconds_count"] < expected["generated"]
    assert result["longhand_block_seconds_sum"] > 0
