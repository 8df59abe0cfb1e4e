"""A Redis whose memory is full: idle sessions go first, and what a running request or the trainer needs stays.

`make test` does some hundred operations on a small one, `make evicting` 20,000 on one of 64 MB.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from service.jobs.worker import worker_alive
from service.store.connect import close, connect
from service.store.redis_server import eviction_problem
from service.store.sessions import digest, new_session_id
from tests.conftest import ALPHABET, random_checkpoint
from tests.load import PROMPT, Load
from tests.servers import RedisServer, Service, Worker, eventually

OPERATIONS = int(os.environ.get("EVICTING_OPERATIONS", "300"))
MEGABYTES = 64 if OPERATIONS >= 5000 else 6
N_CLIENTS = 6
IDLE_S = 10 if OPERATIONS >= 5000 else 5  # longer than anything that is in use
LRU_CLOCK_S = 1.0  # Redis counts how long a key has been idle in whole seconds
POLICY = ("--maxmemory-policy", "volatile-lru", "--maxmemory-samples", "10")
CHECKPOINT = random_checkpoint(n_hidden=192, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    registry.promote(CHECKPOINT.save(folder))
    return folder


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """The beginning of the text of each seed, by the plain loop."""
    stepper, _ = choose(CHECKPOINT.network(), 1)
    return ["".join(write(stepper, ALPHABET, PROMPT, 1500, SamplingParams(), seed=s, block_steps=64)) for s in range(6)]


@pytest.fixture
def full() -> Iterator[RedisServer]:
    server = RedisServer("--maxmemory", f"{MEGABYTES}mb", *POLICY, "--appendonly", "no")
    server.start()
    yield server
    server.remove()


def test_a_full_redis_evicts_idle_sessions_first(
    full: RedisServer, checkpoints: Path, expected: list[str], tmp_path: Path
) -> None:
    """No 500, no wrong text, every stream is saved, each 404 is an evicted session; the trainer is healthy."""
    client = connect(full.url)
    folders = {"LONGHAND_HOME": str(tmp_path), "CHECKPOINT_DIR": str(checkpoints)}
    worker, has_ended, missed = Worker(REDIS_URL=full.url, **folders), threading.Event(), []
    worker.start()
    eventually(lambda: worker_alive(client))

    def watch() -> None:
        while not has_ended.wait(0.2):
            if not client.keys("rq:worker:*") or not worker_alive(client):
                missed.append(True)

    watcher = threading.Thread(target=watch)
    try:
        with Service(REDIS_URL=full.url, **folders) as service:
            _fill(client, service)
            watcher.start()
            load = Load(service, expected)
            outcome = load.run(N_CLIENTS, lambda n: n < OPERATIONS)
            has_ended.set()
            watcher.join()
            info = client.info()
            print(f"\n{dict(outcome.counts)} refused {dict(outcome.counts_of_refusals)} evicted {info['evicted_keys']}")
            assert service.client.get("/healthz").status_code == 200
    finally:
        has_ended.set()
        worker.stop()
        close(client)
    assert outcome.faults == []
    assert info["evicted_keys"] > 0
    assert missed == []
    assert [idle_s for idle_s in outcome.lost_after_s if idle_s < LRU_CLOCK_S] == []
    assert set(outcome.counts_of_refusals) <= {"404 unknown_session"}


def _fill(client: Any, service: Service) -> None:
    """Fill the memory with sessions that nobody uses any more: copies of one, until Redis evicts."""
    session_id = service.generate(prompt=PROMPT, max_chars=20)["session_id"]
    record = client.get(f"lh:{{{digest(session_id)}}}")

    def has_evicted() -> bool:
        with client.pipeline(transaction=False) as pipe:
            for _ in range(500):
                pipe.set(f"lh:{{{digest(new_session_id())}}}", record, ex=86_400)
            pipe.execute()
        return bool(client.info("stats")["evicted_keys"])

    eventually(has_evicted)

    def longest_idle_s() -> int:
        keys = itertools.islice(client.scan_iter("lh:*", count=1000), 1000)
        return max(client.object("idletime", key) or 0 for key in keys)  # None: it was evicted meanwhile

    eventually(lambda: longest_idle_s() >= IDLE_S, within_s=60)


def test_a_full_redis_without_anything_to_evict(checkpoints: Path, tmp_path: Path) -> None:
    """What must be stored answers 503 with Retry-After, other texts go on, the trainer lives; later all is well."""
    server = RedisServer("--maxmemory", "8mb", "--maxmemory-policy", "noeviction", "--appendonly", "no")
    server.start()
    client = connect(server.url)
    folders = {"LONGHAND_HOME": str(tmp_path), "CHECKPOINT_DIR": str(checkpoints)}
    worker = Worker(REDIS_URL=server.url, **folders)
    worker.start()
    try:
        eventually(lambda: worker_alive(client))
        with Service(REDIS_URL=server.url, **folders) as service:
            session_id = service.generate(prompt=PROMPT, max_chars=20)["session_id"]
            assert service.client.put("/corpora/words", content="a few words\n" * 1000).status_code == 201
            client.config_set("maxmemory", "1mb")
            unsaved = service.generate(prompt=PROMPT, max_chars=20)
            assert (unsaved["saved"], unsaved.get("session_id")) == (False, None)
            refused = service.post(session_id=session_id, prompt="", max_chars=20)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["Retry-After"]) >= 1
            assert service.client.get(f"/sessions/{session_id}").status_code == 200
            retrain = service.client.post("/retrain", json={"corpus": "words"})
            assert (retrain.status_code, retrain.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(retrain.headers["Retry-After"]) >= 1
            beats = _heartbeats(client)
            client.config_set("maxmemory", "64mb")
            assert service.generate(session_id=session_id, prompt="", max_chars=20)["saved"] is True
            eventually(lambda: _heartbeats(client) not in (beats, set()))
            assert worker.process is not None
            assert worker.process.poll() is None
    finally:
        worker.stop()
        close(client)
        server.remove()


def _heartbeats(client: Any) -> set[Any]:
    return {client.hget(key, "last_heartbeat") for key in client.keys("rq:worker:*")}


@pytest.mark.parametrize(
    ("policy", "is_right"),
    [("volatile-lru", True), ("noeviction", True), ("volatile-ttl", False), ("allkeys-lru", False)],
)
def test_a_policy_that_evicts_what_is_needed_is_named(redis_server: RedisServer, policy: str, is_right: bool) -> None:
    """At the start, where the server has a limit at all."""
    client = connect(redis_server.url)
    try:
        client.config_set("maxmemory-policy", policy)
        assert eviction_problem(client) is None
        client.config_set("maxmemory", "1gb")
        problem = eviction_problem(client)
        assert (problem is None) is is_right
        assert is_right or policy in str(problem)
    finally:
        client.config_set("maxmemory", "0")
        client.config_set("maxmemory-policy", "noeviction")
        close(client)
