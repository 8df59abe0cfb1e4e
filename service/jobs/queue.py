"""The line of trainings: submit, look, cancel, follow. RQ queues; what RQ does not know stands in the job's record."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

import redis
from rq import Queue, Retry
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from service.errors import JobHasEnded, JobQueueFull, StoreUnavailable, UnknownJob
from service.jobs.record import JOBS, Record

QUEUE = "longhand"
RETRAIN = "service.jobs.tasks.retrain"
JOB_ID = "[0-9a-f]{16}"
RETRIES = 3
_KEEP_S = 30 * 86_400
_FIRST = "lh:first-job"
_LOCK = "lh:jobs:lock"
_LIVE = ("queued", "running")
_STATES = {
    JobStatus.STARTED: "running",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "failed",
    JobStatus.CANCELED: "cancelled",
    JobStatus.FINISHED: "finished",
}


class RetrainJob(Job):
    """A job that can only be a training: nothing that is read from Redis says what runs."""

    @property
    def func(self) -> Any:
        if self.func_name != RETRAIN or self.instance is not None:
            raise ValueError(f"job {self.id}: names {self.func_name!r}, expected {RETRAIN!r}")
        from service.jobs.tasks import retrain  # torch: only who trains loads it

        return retrain


class JobQueue:
    """Every method raises StoreUnavailable when Redis does not answer."""

    def __init__(self, client: redis.Redis, max_waiting: int) -> None:
        self._client = client
        self._max_waiting = max_waiting
        self._queue = Queue(QUEUE, connection=client, serializer=JSONSerializer, job_class=RetrainJob)

    def submit(self, request: dict[str, Any]) -> str:
        """Put a training in the line: its id. Raised: JobQueueFull."""
        with _asking(), self._client.lock(_LOCK, timeout=10, blocking_timeout=5):
            return self._enqueue(request)

    def submit_first(self, request: dict[str, Any]) -> tuple[str, bool]:
        """Queue the training of a first model unless one is queued or runs: its id, and whether it is new.

        Of several that start at once, one queues it.
        """
        with _asking(), self._client.lock(_LOCK, timeout=10, blocking_timeout=5):
            found = self.first()
            if found is not None:
                return found, False
            job_id = self._enqueue(request)
            self._client.set(_FIRST, job_id)
            return job_id, True

    def first(self) -> str | None:
        """The training of a first model that is queued or runs."""
        with _asking():
            found: Any = self._client.get(_FIRST)
            if found is None:
                return None
            job_id = found.decode()
            try:
                return job_id if self.get(job_id)["state"] in _LIVE else None
            except UnknownJob:
                return None

    def get(self, job_id: str) -> dict[str, Any]:
        """All that is known of a job. Raised: UnknownJob."""
        with _asking():
            # A worker that died is noticed by whoever asks, not only by the next worker.
            self._queue.started_job_registry.cleanup()
            record = Record(self._client, job_id).read()
            if record is None:
                raise UnknownJob(f"no such job: {job_id} never was, or is long over")
            job = self._fetch(job_id)
            position = self._queue.get_job_position(job_id) if job is not None else None
        state = _state(job, record)
        return {
            "job_id": job_id,
            "state": state,
            "cancelling": "cancel" in record and state in _LIVE,
            "request": record["request"],
            "attempt": int(record["attempt"]),
            "position": position,
            "created": float(record["created"]),
            "started": float(record["started"]) if "started" in record else None,
            "ended": float(record["ended"]) if "ended" in record else None,
            "progress": record.get("progress"),
            "losses": record.get("looks", []),
            "samples": record.get("samples", []),
            "notes": record.get("notes", []),
            "advice": record.get("advice", []),
            "result": record.get("result"),
            "error": _reason(job, record) if state == "failed" else None,
        }

    def listing(self) -> list[dict[str, Any]]:
        """Every job that is remembered, the newest first, less what grows while it runs."""
        with _asking():
            ids: Any = self._client.zrange(JOBS, 0, -1, desc=True)
        listed = []
        for job_id in ids:
            with contextlib.suppress(UnknownJob):
                job = self.get(job_id.decode())
                listed.append({k: v for k, v in job.items() if k not in ("losses", "samples", "notes", "advice")})
        return listed

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask a job to end: at once in the line, within seconds when it runs. Raised: UnknownJob, JobHasEnded."""
        found = self.get(job_id)
        if found["state"] == "cancelled":
            return found
        if found["state"] not in _LIVE:
            raise JobHasEnded(f"job {job_id} has {found['state']} already", state=found["state"])
        with _asking():
            Record(self._client, job_id).ask_to_cancel()
            job = self._fetch(job_id)
            if (
                job is not None
                and job.get_status() == JobStatus.QUEUED
                and self._queue.get_job_position(job_id) is not None
            ):
                with contextlib.suppress(InvalidJobOperation):
                    job.cancel()
        return self.get(job_id)

    def events(self, job_id: str, after: str, wait_ms: int = 1000) -> list[tuple[str, str, dict[str, Any]]]:
        """What happened after this event's id ("0" for all): (id, name, data); waits for a first one."""
        with _asking():
            return Record(self._client, job_id).events(after, wait_ms)

    def _enqueue(self, request: dict[str, Any]) -> str:
        if self._queue.count >= self._max_waiting:
            raise JobQueueFull(f"all {self._max_waiting} places in the line of trainings are taken")
        job_id = secrets.token_hex(8)
        Record(self._client, job_id).create(request)
        self._queue.enqueue_call(
            RETRAIN,
            args=(job_id, request),
            job_id=job_id,
            timeout=-1,  # the budget ends a training; a hung one is cancelled or killed
            result_ttl=_KEEP_S,
            failure_ttl=_KEEP_S,
            description=f"retrain {job_id}",
            retry=Retry(max=RETRIES, enqueue_at_front=True),
        )
        return job_id

    def _fetch(self, job_id: str) -> Job | None:
        try:
            return RetrainJob.fetch(job_id, connection=self._client, serializer=JSONSerializer)
        except NoSuchJobError:
            return None


def _state(job: Job | None, record: dict[str, Any]) -> str:
    if "result" in record:
        return "cancelled" if record["result"].get("cancelled") else "finished"
    if job is None:
        return "failed"
    return _STATES.get(job.get_status(refresh=False), "queued")


def _reason(job: Job | None, record: dict[str, Any]) -> str:
    if "error" in record:
        return str(record["error"])
    result = job.latest_result() if job is not None else None
    said = (result.exc_string or "").strip() if result is not None else ""
    if "AbandonedJobError" in said:
        return "the worker that ran it is gone: it was killed, or its machine stopped"
    return said.splitlines()[-1] if said else "its entry in the queue is gone"


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as e:
        raise StoreUnavailable(f"Redis does not answer: {e}") from e
