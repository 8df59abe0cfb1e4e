"""Jobs that an older version left in Redis: their records are read under today's names, and queued ones are run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from rq.serializers import JSONSerializer

from model.errors import ConfigError
from service.jobs.queue import QUEUE, JobQueue, RetrainJob
from service.jobs.record import JobRecord, JobState
from service.jobs.request import JobRequest
from tests.servers import ROOT

FIXTURE: dict[str, Any] = json.loads((ROOT / "tests/fixtures/old_jobs.json").read_text())


def restore(client: redis.Redis) -> None:
    """Write the keys of the fixture."""
    for key, entry in FIXTURE["keys"].items():
        value: Any = entry["value"]
        match entry["type"]:
            case "string":
                client.set(key, value)
            case "hash":
                client.hset(key, mapping={k: v.encode("latin-1") for k, v in value.items()})
            case "list":
                client.rpush(key, *value)
            case "zset":
                client.zadd(key, value)
            case "stream":
                for id, fields in value:
                    client.xadd(key, {k: v.encode("latin-1") for k, v in fields.items()}, id=id)


@pytest.fixture
def client(empty_redis: redis.Redis) -> redis.Redis:
    restore(empty_redis)
    return empty_redis


def test_a_finished_job_is_read_under_the_present_names(client: redis.Redis) -> None:
    """Times, validations, progress, decision and protocol; nothing is lost or left under an old name."""
    job = JobQueue(client, 8).get(FIXTURE["finished"])
    assert (job.state, job.record.attempt) == (JobState.FINISHED, 1)
    public = job.as_dict()
    assert public["created_at"] < public["started_at"] < public["ended_at"]
    assert [v["step"] for v in public["validations"]] == [14, 27, 40]
    names = ("step", "elapsed_s", "train_loss", "val_loss", "is_best", "val_loss_per_item")
    assert {tuple(v) for v in public["validations"]} == {names}
    assert public["progress"]["remaining_s"] == 0.0
    decision = public["result"]["decision"]
    assert decision["new_val_loss"] > decision["promoted_val_loss"]
    assert (decision["protocol"], decision["skipped_characters"]) == ("stateful", 0)
    assert public["result"]["checkpoint"]["val_protocol"] == "stateful"
    assert len(decision["promoted_id"]) == 16


def test_events_are_read_under_the_present_names(client: redis.Redis) -> None:
    """A client that follows an old job gets validations, not the events of the old version."""
    events = JobQueue(client, 8).events(FIXTURE["finished"], "0", wait_ms=1)
    assert {e.name for e in events} == {"note", "progress", "validation", "sample"}
    assert [e.data["val_loss"] for e in events if e.name == "validation"]
    assert all("remaining_s" in e.data for e in events if e.name == "progress")


def test_the_queued_bootstrap_job_is_found(client: redis.Redis) -> None:
    """A restart with the new version does not queue a second one."""
    queue = JobQueue(client, 8)
    assert queue.bootstrap_job_id() == FIXTURE["queued"]
    assert queue.submit_bootstrap({"corpus": "x"}) == (FIXTURE["queued"], False)


def test_an_old_job_runs_the_present_function(client: redis.Redis) -> None:
    """The function's old name in RQ's entry stands for the present one; its arguments are understood."""
    job_id = FIXTURE["queued"]
    rq_job = RetrainJob.fetch(job_id, connection=client, serializer=JSONSerializer)
    assert rq_job.func_name == "service.jobs.run.retrain"
    assert rq_job.func.__module__ == "service.jobs.tasks"
    assert rq_job.args[0] == job_id
    request = JobRequest.from_dict(rq_job.args[1])
    assert (request.corpora, request.train_config().steps) == (["words"], 30)
    assert client.lrange(f"rq:queue:{QUEUE}", 0, -1) == [job_id.encode()]


def test_a_retried_old_bootstrap_job_still_is_one(client: redis.Redis) -> None:
    """The flag that its first attempt set under the old name decides, not what has been promoted since."""
    assert JobRecord(client, FIXTURE["bootstrap"]).set_if_absent("is_bootstrap", False) is True
    assert JobRecord(client, FIXTURE["finished"]).set_if_absent("is_bootstrap", True) is False


def test_a_setting_that_this_version_lacks_is_refused() -> None:
    """The error names it and says what to do."""
    request = {"corpus": "words", "preset": "quick", "promote": "never", "warm_start": False, "tail": 3}
    with pytest.raises(ConfigError, match="tail: not a setting of this version; submit the job again without it"):
        JobRequest.from_dict(request)
