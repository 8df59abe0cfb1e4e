"""Damaged checkpoints, promotions, resume states and job records: one error with a reason, and no path that leaves."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from model.checkpoints import file_format, registry
from model.errors import ModelError
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.run_folder import RunFolder
from service.errors import ServiceError, UnknownJob
from service.jobs import record
from service.jobs.queue import JobQueue
from tests.conftest import random_checkpoint
from tests.fuzz.mutation import N, failures, mutated
from tests.model.texts import words
from tests.model.training.test_old_runs import FIXTURES, STEPS, model
from tests.service.jobs.test_old_jobs import FIXTURE, restore


def tolerated(act: Callable[[], object]) -> None:
    """Do something that may end in an error that says what is wrong, and in no other."""
    try:
        act()
    except (ModelError, ServiceError) as e:
        if getattr(e, "status", 0) == 500 or len(str(e)) < 10:
            raise AssertionError(f"an error without a reason: {e}") from e


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: half of the time its header, whose length is then right."""
    if rng.random() < 0.5:
        return mutated(data, rng)
    (length,) = struct.unpack_from("<Q", data)
    header = mutated(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    """What is loaded has the weights that were saved."""
    original = random_checkpoint(n_layers=1, n_hidden=4)
    path = original.save(tmp_path)
    data = path.read_bytes()

    def damage(rng: random.Random) -> Callable[[], None]:
        path.write_bytes(damaged_safetensors(data, rng))

        def act() -> None:
            registry.list_checkpoints(tmp_path)
            file_format.read_info(path)
            loaded = file_format.load(path)
            assert loaded.fingerprint == original.fingerprint, "other weights were loaded"

        return lambda: tolerated(act)

    assert failures(damage) == []


def test_damaged_promotions_are_refused(tmp_path: Path) -> None:
    """Whatever is promoted lies in the folder."""
    data = json.dumps(
        {"checkpoint": "a.safetensors", "before": ["b.safetensors", "c.safetensors"], "version": 7}
    ).encode()

    def damage(rng: random.Random) -> Callable[[], None]:
        (tmp_path / "promoted.json").write_bytes(mutated(data, rng))

        def act() -> None:
            path = registry.promoted_path(tmp_path)
            assert path is None or path.parent == tmp_path, path
            for name in registry.promotion_history(tmp_path):
                assert (tmp_path / name).parent == tmp_path, name
            assert registry.promotion_version(tmp_path) >= 0

        return lambda: tolerated(act)

    assert failures(damage) == []


def test_a_name_that_is_not_checked_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with the check of the names off, a promotion leaves the folder."""
    monkeypatch.setattr(registry, "is_checkpoint_name", lambda _: True)
    with pytest.raises(AssertionError):
        test_damaged_promotions_are_refused(tmp_path)


def test_damaged_resume_states_are_refused(tmp_path: Path) -> None:
    """A run goes on, or says why it cannot; files outside its folder stay."""
    corpus = Corpus.from_text(words(400), STEPS)
    data = (FIXTURES / "steps" / "run" / "resume.safetensors").read_bytes()
    run = tmp_path / "steps" / "run"
    shutil.copytree(FIXTURES / "steps", tmp_path / "steps")
    outside = tmp_path / "outside.safetensors"
    outside.write_text("mine")

    def damage(rng: random.Random) -> Callable[[], None]:
        damaged = damaged_safetensors(data, rng)
        if rng.random() < 0.1:
            damaged = _with_values(
                data, {"superseded_checkpoint": rng.choice((str(outside), "../outside.safetensors"))}
            )
        (run / "resume.safetensors").write_bytes(damaged)
        return lambda: tolerated(RunFolder(run).read_resume_state)

    def resume(rng: random.Random) -> Callable[[], None]:
        damage(rng)

        def act() -> None:
            fit(corpus, model(corpus), STEPS, tmp_path / "steps", run=run, resume=True, on_progress=_stop)

        return lambda: tolerated(act)

    assert failures(damage) == []
    assert failures(resume, max(20, N // 20)) == []
    assert outside.read_text() == "mine"


def _stop(_: object) -> None:
    raise KeyboardInterrupt


def _with_values(data: bytes, changed: dict[str, Any]) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    values = {**json.loads(header["__metadata__"]["values"]), **changed}
    header["__metadata__"]["values"] = json.dumps(values)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


@pytest.fixture
def client(empty_redis: redis.Redis) -> redis.Redis:
    restore(empty_redis)
    return empty_redis


def damaged_job(client: redis.Redis) -> Callable[[random.Random], Callable[[], None]]:
    """Damage a field of a job's record, of RQ's entry, or an event."""
    queue, job_id = JobQueue(client, 8), FIXTURE["finished"]
    hashes = [key for key in (f"lh:job:{job_id}", f"rq:job:{job_id}") if client.exists(key)]
    originals: dict[str, Any] = {key: client.hgetall(key) for key in hashes}
    others = {job.job_id for job in queue.listing()} - {job_id}
    assert others

    def damage(rng: random.Random) -> Callable[[], None]:
        for key, fields in originals.items():
            client.delete(key)
            client.hset(key, mapping=fields)
        key = rng.choice(hashes)
        field = rng.choice(sorted(originals[key]))
        client.hset(key, field, mutated(originals[key][field], rng))
        events = f"lh:job:{job_id}:events"
        client.xadd(events, {"name": mutated(b"progress", rng), "data": mutated(b'{"step": 1, "lr": 0.5}', rng)})

        def act() -> None:
            listed = queue.listing()
            assert others <= {job.job_id for job in listed}, "another job is missing"
            displayed = [job.as_dict() for job in listed] + [e.data for e in queue.events(job_id, "0", wait_ms=1)]
            json.dumps(displayed, ensure_ascii=False, allow_nan=False).encode()
            queue.bootstrap_job_id()
            tolerated(lambda: queue.get(job_id))
            tolerated(lambda: queue.cancel(job_id))

        return act

    return damage


def test_damaged_jobs_fail_alone(client: redis.Redis) -> None:
    """The list has all other jobs; what is shown is valid JSON; the damaged one has an error with a reason."""
    assert failures(damaged_job(client)) == []
    with pytest.raises(UnknownJob):
        JobQueue(client, 8).get("0" * 16)


def test_without_the_checks_of_a_record_the_damage_shows(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same damage, and what reading it raises is let through."""
    damage = damaged_job(client)
    monkeypatch.setattr(record, "_DAMAGE", ())
    assert failures(damage, 50)
