"""A job's record or entry that is damaged, or that someone else wrote, harms no other job and no worker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from rq.exceptions import NoSuchJobError
from rq.serializers import JSONSerializer

from model.errors import ConfigError
from service.errors import UnreadableJob
from service.jobs.queue import JobQueue, RetrainJob, run_folder
from service.jobs.record import JOBS_KEY, record_key
from service.jobs.request import JobRequest

REQUEST = {"corpus": "words", "preset": "quick", "promote": "never", "warm_start": False}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request", "[]"),
        ("request", "{"),
        ("request", "[" * 100_000),
        ("created_at", "nan"),
        ("created_at", "1e999"),
        ("attempt", "two"),
        ("progress", '{"lr": NaN}'),
        ("progress", '{"lr": 1e999}'),
        ("progress", "7"),
        ("validations", '[{"step": 1}]'),
        ("validations", "[7]"),
        ("samples", '{"a": 1}'),
        ("notes", "[1]"),
        ("result", '{"cancelled": "yes", "checkpoint": null, "decision": null}'),
        ("result", "{}"),
        ("error", b"\xff"),
    ],
)
def test_a_damaged_record_is_one_error(empty_redis: redis.Redis, field: str, value: str | bytes) -> None:
    """Reading that job says what is wrong; the list of the others is whole, and another can be submitted."""
    queue = JobQueue(empty_redis, 8)
    damaged, other = queue.submit(REQUEST), queue.submit(REQUEST)
    empty_redis.hset(record_key(damaged), field, value)
    with pytest.raises(UnreadableJob, match=damaged):
        queue.get(damaged)
    assert [job.job_id for job in queue.listing()] == [other]
    assert queue.submit(REQUEST)


def test_names_that_are_no_ids_are_passed_over(empty_redis: redis.Redis) -> None:
    """Among the jobs, as the bootstrap job, and in RQ's registry of running jobs."""
    queue = JobQueue(empty_redis, 8)
    job_id = queue.submit(REQUEST)
    empty_redis.zadd(JOBS_KEY, {b"\xff/../x": 5.0})
    empty_redis.set("lh:bootstrap-job", b"\xff")
    empty_redis.zadd("rq:wip:longhand", {b"\xff": 1.0, b"no:such:execution": 1.0})
    assert [job.job_id for job in queue.listing()] == [job_id]
    assert queue.bootstrap_job_id() is None


def test_an_event_that_cannot_be_read_is_a_note(empty_redis: redis.Redis) -> None:
    """The events after it follow, and a client can resume after it."""
    queue = JobQueue(empty_redis, 8)
    job_id = queue.submit(REQUEST)
    for data in (b"{", b"[1]", b'{"lr": NaN}', b'{"text": "fine"}'):
        empty_redis.xadd(f"{record_key(job_id)}:events", {"name": "note", "data": data})
    empty_redis.xadd(f"{record_key(job_id)}:events", {"other": "field"})
    texts = [event.data["text"] for event in queue.events(job_id, "0", wait_ms=1)]
    assert len(texts) == 5
    assert texts[3] == "fine"
    assert ["cannot be read" in text for text in texts] == [True, True, True, False, True]


def test_nothing_that_an_entry_names_is_imported_or_called(empty_redis: redis.Redis) -> None:
    """Callbacks, web addresses, dependencies and repetitions in RQ's entry are dropped; a damaged entry is none."""
    queue = JobQueue(empty_redis, 8)
    key = f"rq:job:{queue.submit(REQUEST)}"
    names: dict[Any, Any] = {f"{kind}_callback_name": "os.getcwd" for kind in ("success", "failure", "stopped")}
    hook = json.dumps([{"url": "http://127.0.0.1:1/", "job_status": "failed"}])
    empty_redis.hset(key, mapping={**names, "webhooks": hook, "repeats_left": "9", "dependency_ids": '["x"]'})
    job_id = key.rpartition(":")[2]
    job = RetrainJob.fetch(job_id, connection=empty_redis, serializer=JSONSerializer)
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)
    assert (job.webhooks, job.repeats_left, job.dependency_ids) == ([], None, [])
    for field, value in (("created_at", "yesterday"), ("status", "fine"), ("timeout", "x"), ("dependency_ids", "{")):
        good: Any = empty_redis.hget(key, field)
        empty_redis.hset(key, field, value)
        with pytest.raises(NoSuchJobError):
            RetrainJob.fetch(job_id, connection=empty_redis, serializer=JSONSerializer)
        assert queue.get(job_id).error == "RQ has no entry for this job any more"
        empty_redis.hset(key, field, good or b"")


@pytest.mark.parametrize("job_id", ["/etc", "..", "../x", "", ".", "0123456789ABCDEF", "0123456789abcdef/.."])
def test_a_folder_is_made_of_an_id_alone(tmp_path: Path, job_id: str) -> None:
    """Not of a path: the folder is deleted when the job ends."""
    with pytest.raises(ValueError, match="job_id: got"):
        run_folder(tmp_path, job_id)
    assert run_folder(tmp_path, "0123456789abcdef") == tmp_path / "0123456789abcdef"


@pytest.mark.parametrize(
    "change",
    [
        {"corpus": 7},
        {"corpus": []},
        {"corpus": [None]},
        {"corpus": {"a": 1}},
        {"preset": []},
        {"preset": None},
        {"promote": 1},
        {"warm_start": "no"},
    ],
)
def test_a_request_of_wrong_types_is_refused(change: dict[str, Any]) -> None:
    """With the field, so that the job fails at once and says why."""
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}|request"):
        JobRequest.from_dict({**REQUEST, **change})


def test_a_damaged_key_is_no_job(empty_redis: redis.Redis) -> None:
    """What is stored for an Idempotency-Key is no text: the request is a new job, which has the key from then on."""
    queue = JobQueue(empty_redis, 8)
    empty_redis.set("lh:jobs:key:one", b"\xff")
    job_id = queue.submit(REQUEST, "one")
    assert queue.submit(REQUEST, "one") == job_id
