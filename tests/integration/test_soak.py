"""A soak under mixed load: memory, descriptors and threads do not grow. `make soak` runs it (MINUTES=30)."""

from __future__ import annotations

import os
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from service.store.connect import close, connect
from tests.conftest import ALPHABET, random_checkpoint
from tests.integration.test_jobs import words
from tests.load import Load, Outcome
from tests.servers import RedisServer, Service, Worker

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
LIMIT = 0.01
N_CLIENTS = 6
_WARM_UP = 0.4  # of the time: pools, arenas and caches reach their size
_RETRAIN_EVERY_S = 60.0
_SAMPLE_EVERY_S = 0.5

pytestmark = pytest.mark.skipif(not MINUTES, reason="a soak takes minutes: make soak")


@dataclass(frozen=True, slots=True)
class Sample:
    """What the service's worker process has at one moment."""

    at_s: float
    resident_bytes: int
    descriptors: int
    threads: int


class Leaking(Service):
    """The service with a leak."""

    module = "tests.leaking_server"


def take_sample(pid: int, began: float) -> Sample:
    """Measure a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    resident = int(values["VmRSS"].split()[0]) * 1024
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    return Sample(time.monotonic() - began, resident, descriptors, int(values["Threads"]))


def growth(samples: list[Sample], what: str) -> float:
    """The relative growth after the warm-up: the median of its last quarter against that of its first."""
    warm = samples[int(len(samples) * _WARM_UP) :]
    quarter = len(warm) // 4
    first, last = (statistics.median(getattr(s, what) for s in part) for part in (warm[:quarter], warm[-quarter:]))
    return float(last / first - 1)


def soak(service_class: type[Service], folder: Path, minutes: float, **more: str) -> tuple[list[Sample], Outcome, int]:
    """Put a mixed load on a service while models are trained and swapped; return samples, outcome and swaps."""
    registry.promote(random_checkpoint(n_hidden=64).save(folder / "checkpoints"))
    (folder / "corpora").mkdir()
    (folder / "corpora" / "words").write_text(ALPHABET.characters + words(20_000))
    redis = RedisServer("--appendonly", "no")
    redis.start()
    times = {"SESSION_TTL_S": "20", "TURN_TTL_S": "20", "KEEP_CHECKPOINTS": "100"}
    environment = {"REDIS_URL": redis.url, "LONGHAND_HOME": str(folder), **times, **more}
    worker, has_ended = Worker(**environment), threading.Event()
    worker.start()
    samples: list[Sample] = []
    client = connect(redis.url)
    try:
        with service_class(**environment) as service:
            (pid,) = service.workers()
            began = time.monotonic()
            load = Load(service)

            def sample() -> None:
                while not has_ended.wait(_SAMPLE_EVERY_S):
                    samples.append(take_sample(pid, began))

            def retrain() -> None:
                body = {
                    "corpus": "words",
                    "steps": 60,
                    "n_hidden": 64,
                    "batch_size": 4,
                    "seq_length": 16,
                    "promote": "always",
                }
                while not has_ended.is_set():
                    response = service.client.post("/retrain", json=body)
                    if response.status_code not in (202, 429):
                        load.outcome.faults.append(f"/retrain: {response.status_code} {response.text}")
                    has_ended.wait(_RETRAIN_EVERY_S)

            beside = [threading.Thread(target=act) for act in (sample, retrain)]
            for thread in beside:
                thread.start()
            # First a crowd: pools of threads and connections grow to what the most requests at once have needed.
            load.run(4 * N_CLIENTS, lambda _: time.monotonic() - began < minutes * 60 * _WARM_UP / 2)
            outcome = load.run(N_CLIENTS, lambda _: time.monotonic() - began < minutes * 60)
            has_ended.set()
            for thread in beside:
                thread.join()
            assert service.workers() == [pid]
            n_swaps = len({m["name"] for m in _models(service)}) - 1
    finally:
        has_ended.set()
        worker.stop()
        close(client)
        redis.remove()
    return samples, outcome, n_swaps


def _models(service: Service) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = service.client.get("/models").json()["models"]
    return models


def test_nothing_grows(tmp_path: Path) -> None:
    """Streams, leavers, retrains with swaps, sessions that expire: less than 1% after the warm-up, and no fault."""
    samples, outcome, n_swaps = soak(Service, tmp_path, MINUTES)
    grown = {what: growth(samples, what) for what in ("resident_bytes", "descriptors", "threads")}
    last = samples[-1]
    print(f"\n{MINUTES:g} min, {outcome.counts.total()} operations {dict(outcome.counts)}, {n_swaps} swaps")
    print(
        f"{last.resident_bytes >> 20} MiB, {last.descriptors} descriptors, {last.threads} threads; growth " + str(grown)
    )
    step = max(1, len(samples) // 10)
    print([f"{s.resident_bytes / 2**20:.1f}" for s in samples[::step]])
    assert outcome.faults == []
    assert n_swaps >= 1
    assert {what: value for what, value in grown.items() if value >= LIMIT} == {}


def test_a_leak_is_caught(tmp_path: Path) -> None:
    """The control: with 1 KB more for each request, the same measurement shows a growth of the memory."""
    samples, outcome, _ = soak(Leaking, tmp_path, MINUTES, LEAK_BYTES="1024")
    print(f"\nthe control: {outcome.counts.total()} operations, growth {growth(samples, 'resident_bytes'):.3%}")
    assert growth(samples, "resident_bytes") >= LIMIT
