"""The queue of training jobs: a job that waits stays known, whatever came after it."""

from __future__ import annotations

import redis

from service.jobs.queue import JobQueue
from service.jobs.record import MAX_RECORDS, JobState

REQUEST = {"corpus": "words", "preset": "quick", "promote": "never", "warm_start": False}


def test_a_job_that_waits_keeps_its_record(empty_redis: redis.Redis) -> None:
    """Of the others the newest are kept; when it has ended, its own is one of the oldest."""
    queue = JobQueue(empty_redis, 8)
    waiting = queue.submit(REQUEST)
    ended = [queue.cancel(queue.submit(REQUEST)).job_id for _ in range(MAX_RECORDS + 5)]
    assert queue.get(waiting).state is JobState.QUEUED
    listed = [job.job_id for job in queue.listing()]
    assert (len(listed), listed[-1]) == (MAX_RECORDS + 1, waiting)
    assert set(listed[:-1]) < set(ended)
    queue.cancel(waiting)
    assert queue.submit(REQUEST) in {job.job_id for job in queue.listing()}
    assert waiting not in {job.job_id for job in queue.listing()}


def test_as_many_jobs_as_may_wait_have_records(empty_redis: redis.Redis) -> None:
    """MAX_QUEUED_JOBS may be more than the records that are kept."""
    queue = JobQueue(empty_redis, MAX_RECORDS + 10)
    submitted = [queue.submit(REQUEST) for _ in range(MAX_RECORDS + 10)]
    assert [job.job_id for job in queue.listing()] == submitted[::-1]
