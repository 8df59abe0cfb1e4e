"""python -m service in an empty folder: up at once, the bootstrap model is trained live, and every process ends."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from service.errors import JobQueueFull
from service.jobs.queue import MAX_RETRIES, JobQueue, RetrainJob
from service.launcher import training_progress
from service.settings import read_settings
from service.store.connect import connect
from tests.integration.launched import Launched
from tests.integration.test_jobs import words
from tests.servers import RedisServer, eventually


def test_a_bootstrap_model_is_trained_live(tmp_path: Path) -> None:
    """Ready without a model, 503 with the job's link until the first validation, then texts; the terminal shows it.

    A second start serves at once; one with another text serves the old model until the first checkpoint of the new
    text, while its training goes on.
    """
    corpus = tmp_path / "My Own Words.txt"
    corpus.write_text(words(20000))
    first = Launched(tmp_path, "--corpus", str(corpus), "--minutes", "0.1")
    eventually(lambda: first.ready() is not None, within_s=60)
    body = first.ready() or {}
    refused = first.generate()
    if refused.status_code == 503:  # it may be quick
        assert (body["status"], body["model"]) == ("training", None)
        assert refused.json()["error"]["code"] == "no_model"
        assert int(refused.headers["Retry-After"]) >= 1
        job = first.client.get(refused.json()["error"]["job"]).json()
        assert job["state"] in ("queued", "running", "finished")
        assert job["request"]["corpus"] == "my-own-words"
    eventually(lambda: first.generate().status_code == 200, within_s=120)
    (job,) = first.client.get("/jobs").json()["jobs"]
    eventually(lambda: first.client.get(f"/jobs/{job['job_id']}").json()["state"] == "finished", within_s=120)
    made = first.client.get(f"/jobs/{job['job_id']}").json()["result"]["checkpoint"]
    eventually(lambda: first.generate().json()["model"]["fingerprint"] == made["id"])
    eventually(lambda: any("train   finished, validation" in line for line in first.lines))
    validations = [line for line in first.lines if "nats" in line and "#" in line]
    assert len(validations) >= 2
    assert any(line.startswith("        | ") for line in first.lines)  # a sample of the model
    first.stop(signal.SIGTERM)

    second = Launched(tmp_path, "--corpus", str(corpus))
    eventually(lambda: (second.ready() or {}).get("model") is not None, within_s=60)
    assert second.generate().json()["model"]["fingerprint"] == made["id"]
    assert len(second.client.get("/jobs").json()["jobs"]) == 1
    second.stop(signal.SIGINT)

    corpus.write_text(words(20000).upper())
    third = Launched(tmp_path, "--corpus", str(corpus), "--minutes", "1")
    eventually(lambda: (third.ready() or {}).get("model") is not None, within_s=60)
    assert any("was trained on another text" in line for line in third.lines)
    eventually(lambda: third.generate().json()["model"]["fingerprint"] != made["id"], within_s=120)
    (newest, _) = third.client.get("/jobs").json()["jobs"]
    assert newest["state"] == "running"
    third.stop(signal.SIGTERM)


def test_of_several_processes_one_queues_the_bootstrap_job(redis_server: RedisServer) -> None:
    """Eight at the same time: one job, and each call returns its id."""
    client = connect(redis_server.url)
    client.flushall()
    submitted: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda: submitted.append(JobQueue(client, 8).submit_bootstrap({"corpus": "x"})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in submitted}) == 1
    assert [is_new for _, is_new in submitted].count(True) == 1
    client.flushall()
    client.close()


def test_the_queue_is_bounded_for_concurrent_submissions(redis_server: RedisServer) -> None:
    """Sixteen submissions at the same time to a queue of three: three are accepted."""
    client = connect(redis_server.url)
    client.flushall()
    refused: list[bool] = []

    def submit() -> None:
        try:
            JobQueue(client, 3).submit({"corpus": "x"})
            refused.append(False)
        except JobQueueFull:
            refused.append(True)

    threads = [threading.Thread(target=submit) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused.count(False) == 3
    assert len(JobQueue(client, 3).listing()) == 3
    client.flushall()
    client.close()


def test_a_start_gives_the_bootstrap_job_its_attempts_back(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launcher that is killed while it trains costs it one; the next start would be left with a failed job."""
    client = connect(redis_server.url)
    client.flushall()
    (tmp_path / "words.txt").write_text(words(3000))
    monkeypatch.setenv("JOBS_REDIS_URL", redis_server.url)
    monkeypatch.setenv("LONGHAND_HOME", str(tmp_path))
    settings = read_settings()
    queue = JobQueue(client, 8)
    job_id = training_progress.queue_training(settings, queue, [tmp_path / "words.txt"], 1.0)
    assert job_id is not None
    key = RetrainJob.key_for(job_id)
    client.hset(key, "retries_left", 0)
    assert training_progress.queue_training(settings, queue, [tmp_path / "words.txt"], 1.0) == job_id
    assert int(client.hget(key, "retries_left") or 0) == MAX_RETRIES
    client.delete(key)
    queue.restore_retries(job_id)
    assert not client.exists(key)  # a job that has gone is not made again
    client.flushall()
    client.close()
