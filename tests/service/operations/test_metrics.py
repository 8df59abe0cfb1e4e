"""The shared table of counters, an engine's numbers, and the exposition."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from model.checkpoints.file_format import Checkpoint
from model.stepper.reference import ReferenceStepper
from service.engine.engine import Engine
from service.engine.observer import IterationStats
from service.operations import metrics
from service.operations.metrics import BUCKETS_S, MAX_MODELS, OTHER, Metrics, SharedCounters
from tests.scrape import scraped
from tests.service.engine.requests import read, request


def exposed(collector: Metrics) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return scraped(generate_latest(registry).decode())


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> SharedCounters:
    monkeypatch.setattr(metrics, "_process_row", [])
    return SharedCounters(3)


def test_a_scrape_is_the_sum_over_processes(counters: SharedCounters) -> None:
    """What forked processes counted is in the sum; the gauges of an ended process are reset."""
    rows = [counters.allocate_row() for _ in range(3)]
    for row in rows[1:]:
        pid = os.fork()
        if pid == 0:
            metrics.use_row(counters, row)
            engine = Metrics().engine_observer(n_slots=8)
            engine.on_iteration(
                IterationStats(running=3, waiting=2, prompt_chars=10 * row, generated_chars=100, queue_times_s=[0.001])
            )
            os._exit(0)
        os.waitpid(pid, 0)
    metrics.use_row(counters, rows[0])
    mine = Metrics()
    observer = mine.engine_observer(n_slots=4)
    observer.on_iteration(IterationStats(running=1, generated_chars=7, queue_times_s=[0.001, 1000.0]))
    all_alive = exposed(mine)
    assert all_alive["longhand_prompt_tokens_total"] == 30
    assert all_alive["longhand_generation_tokens_total"] == 207
    assert (all_alive["longhand_slots"], all_alive["longhand_slots_in_use"]) == (20, 7)
    assert (all_alive["longhand_requests_running"], all_alive["longhand_requests_waiting"]) == (7, 4)
    assert all_alive["longhand_queue_time_seconds_count"] == 4
    counters.release_row(rows[1])
    after = exposed(mine)
    assert (after["longhand_slots"], after["longhand_requests_running"]) == (12, 4)
    assert after["longhand_generation_tokens_total"] == 207
    assert counters.allocate_row() == rows[1]


def test_a_value_is_in_the_first_bucket_that_holds_it(counters: SharedCounters) -> None:
    """Buckets count values up to and with their bound; the sum and the count are those of the values."""
    collector = Metrics()
    values = [random.Random(1).expovariate(1.0) for _ in range(50)] + [
        0.0,
        BUCKETS_S[0],
        BUCKETS_S[3],
        BUCKETS_S[-1],
        1e6,
    ]
    collector.engine_observer(1).on_iteration(IterationStats(first_chunk_times_s=values))
    result = exposed(collector)
    name = "longhand_time_to_first_token_seconds"
    for bound in BUCKETS_S:
        assert result[f'{name}_bucket{{le="{bound!r}"}}'] == sum(v <= bound for v in values)
    assert result[f'{name}_bucket{{le="+Inf"}}'] == result[f"{name}_count"] == len(values)
    assert result[f"{name}_sum"] == pytest.approx(sum(values))


def test_an_engine_counts_what_it_does(tiny: Checkpoint, counters: SharedCounters) -> None:
    """Prompt and generated characters, finish reasons and times are exact; nothing runs at the end."""
    collector = Metrics()
    engine = Engine(
        ReferenceStepper(tiny.network(), 4),
        tiny.vocab,
        tiny.fingerprint,
        max_waiting=2,
        observer=collector.engine_observer(4),
    )
    requests = [request("hello", 50, seed=i) for i in range(4)]
    requests += [request("a" * 20, 0), request("to", 200, stop=("e",))]
    streams = [engine.submit(element) for element in requests]
    engine.start()
    written = sum(len(read(stream)[0]) for stream in streams)
    assert read(engine.submit(request("", 10**7, deadline=0.0)))[0] == ""  # its time is up in the queue
    engine.stop()
    result = exposed(collector)
    assert result["longhand_prompt_tokens_total"] == 4 * 5 + 20 + 2
    assert result["longhand_generation_tokens_total"] == written
    finished = {r: result[f'longhand_requests_finished_total{{finish_reason="{r}"}}'] for r in metrics.FINISH_REASONS}
    assert finished == {"length": 5, "stop": 1, "cancelled": 0, "timeout": 1, "failed": 0}
    assert result["longhand_queue_time_seconds_count"] == 6
    assert result["longhand_time_to_first_token_seconds_count"] == 5
    assert 0 < result["longhand_inter_token_latency_seconds_count"] <= written - 5
    assert result["longhand_block_seconds_count"] > 0
    gauges = ("requests_running", "requests_waiting", "slots", "slots_in_use")
    assert [result[f"longhand_{name}"] for name in gauges] == [0, 0, 0, 0]


def by_model(collector: Metrics, name: str = "model_requests") -> dict[str, float]:
    """The values of a metric by the label of the model."""
    result = exposed(collector)
    return {
        sample.split('"')[1]: value for sample, value in result.items() if sample.startswith(f"longhand_{name}_total{{")
    }


@pytest.mark.parametrize("n_labels", [0, 1, 20, MAX_MODELS])
def test_the_models_that_are_used_most_have_labels(counters: SharedCounters, n_labels: int) -> None:
    """1,000 names by Zipf's law: no more labels than allowed, no counter ever decreases, and the sum is exact."""
    collector = Metrics(n_labels)
    observers = {f"m{i}": collector.engine_observer(1, f"m{i}") for i in range(1000)}
    names = random.Random(3).choices(list(observers), [1 / (1 + i) for i in range(1000)], k=5000)
    before: dict[str, float] = {}
    for i, name in enumerate(names):
        observers[name].on_iteration(IterationStats(finish_reasons=["length"], generated_chars=7))
        if i % 250 == 0 or i + 1 == len(names):
            after = by_model(collector)
            assert all(after[label] >= value for label, value in before.items())
            assert len(after.keys() - {OTHER}) <= n_labels
            assert sum(after.values()) == i + 1
            before = after
    assert by_model(collector, "model_generation_tokens") == {label: 7 * n for label, n in before.items()}
    most_used = {name for name, _ in Counter(names).most_common(min(n_labels, 3))}
    assert most_used <= before.keys()


def test_the_next_process_in_a_row_goes_on_with_its_labels(counters: SharedCounters) -> None:
    """Labels are summed over processes, and stay when one has ended."""
    rows = [counters.allocate_row() for _ in range(2)]
    for row in (rows[0], rows[1], rows[0]):
        metrics.use_row(counters, row)
        collector = Metrics(2)
        observer = collector.engine_observer(1, "a" * 63)
        for _ in range(20):
            observer.on_iteration(IterationStats(finish_reasons=["stop"]))
    assert by_model(collector) == {OTHER: 20, "a" * 63: 40}
