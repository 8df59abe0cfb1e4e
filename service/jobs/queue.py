"""The queue of training jobs: submit, get, list, cancel, follow. RQ queues; the rest is in the job's record."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import rq
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from model.checkpoints.names import DEFAULT
from service.errors import (
    KEY_REUSED,
    JobHasEnded,
    JobQueueFull,
    KeyReused,
    StoreUnavailable,
    UnknownJob,
    UnreadableJob,
)
from service.jobs.record import (
    JOBS_KEY,
    Job,
    JobEvent,
    JobRecord,
    JobState,
    JsonObject,
    StoredJob,
    record_key,
    remove_old_records,
)

log = logging.getLogger(__name__)
QUEUE = "longhand"
JOB_ID = "[0-9a-f]{16}"
RQ_DAMAGE = (ValueError, TypeError, AttributeError, LookupError, AssertionError, RecursionError)
"""What RQ raises where an entry of its own is damaged."""
MAX_RETRIES = 3
RETRAIN = "service.jobs.tasks.retrain"
_RETRAIN_NAMES = {RETRAIN, "service.jobs.run.retrain"}  # the second is what jobs queued by an older version name
_KEEP_S = 30 * 86_400
_BOOTSTRAP_KEY = "lh:bootstrap-job"
_OLD_BOOTSTRAP_KEY = "lh:first-job"
_KEY_PREFIX = "lh:jobs:key:"
_KEEP_KEY_S = 86_400
_LOCK_KEY = "lh:jobs:lock"
_STATES = {
    JobStatus.STARTED: JobState.RUNNING,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.FAILED,
    JobStatus.CANCELED: JobState.CANCELLED,
    JobStatus.FINISHED: JobState.FINISHED,
}


class RetrainJob(rq.job.Job):
    """An RQ job that can only run `retrain`: a function name read from Redis is compared, never imported.

    RQ would also import callbacks and call web addresses that an entry names; they are dropped when it is read.
    """

    def restore(self, raw_data: Any) -> None:
        """Read an entry from Redis.

        Raises:
            NoSuchJobError: It is damaged; RQ passes over it.
        """
        try:
            super().restore(raw_data)
        except RQ_DAMAGE as e:
            raise NoSuchJobError(f"job {self.id}: its entry cannot be read ({e})") from e
        self._success_callback_name = self._failure_callback_name = self._stopped_callback_name = None
        self.webhooks = []
        self._dependency_ids = []
        self.repeats_left = None

    @property
    def func(self) -> Any:
        """The function that RQ calls.

        Raises:
            ValueError: The job names another function, or its id is none that the queue makes.
        """
        if self.func_name not in _RETRAIN_NAMES or self.instance is not None:
            raise ValueError(f"job {self.id}: names the function {self.func_name!r}, expected {RETRAIN!r}")
        if not re.fullmatch(JOB_ID, self.id) or list(self.args[:1]) != [self.id]:
            raise ValueError(f"job {self.id}: its first argument is {self.args[:1]!r}, expected its id, {JOB_ID}")
        from service.jobs.tasks import retrain  # loads torch, so only in the process that trains

        return retrain


def run_folder(runs_dir: Path, job_id: str) -> Path:
    """Return the folder of a job, in which it trains and which is deleted when it ends.

    Raises:
        ValueError: The id is none that the queue makes, or the folder is a link. To delete it could delete other files.
    """
    if not re.fullmatch(JOB_ID, job_id):
        raise ValueError(f"job_id: got {job_id!r}, expected {JOB_ID}")
    folder = runs_dir / job_id
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link, expected a folder or nothing; remove it")
    return folder


class JobQueue:
    """The queue of training jobs.

    Every method raises StoreUnavailable when Redis does not answer.
    """

    def __init__(self, client: redis.Redis, max_queued: int) -> None:
        """Use this Redis, and let at most so many jobs wait."""
        self._client = client
        self._max_queued = max_queued
        self._queue = rq.Queue(QUEUE, connection=client, serializer=JSONSerializer, job_class=RetrainJob)

    def submit(self, request: JsonObject, key: str = "") -> str:
        """Queue a job and return its id; a request that was sent before with the same key is the same job.

        Args:
            request: What to train.
            key: The digest of the request's Idempotency-Key; empty for none. It is kept for a day.

        Raises:
            JobQueueFull: As many jobs as allowed are queued.
            KeyReused: The key was used for another request.
        """
        with _redis_errors_as_unavailable(), self._lock():
            job_id = self._submitted_with(key, request) if key else None
            if job_id is None:
                job_id = self._enqueue(request)
                if key:
                    self._client.set(_KEY_PREFIX + key, job_id, ex=_KEEP_KEY_S)
            return job_id

    def submit_bootstrap(self, request: JsonObject) -> tuple[str, bool]:
        """Queue the bootstrap job, which trains the first model, unless one is queued or running.

        Of several processes that call this at the same time, one queues the job.

        Returns:
            The job's id, and whether this call queued it.

        Raises:
            JobQueueFull: As many jobs as allowed are queued.
        """
        with _redis_errors_as_unavailable(), self._lock():
            job_id = self.bootstrap_job_id()
            if job_id is not None:
                return job_id, False
            job_id = self._enqueue(request)
            self._client.set(_BOOTSTRAP_KEY, job_id)
            return job_id, True

    def bootstrap_job_id(self) -> str | None:
        """Return the id of the bootstrap job if it is queued or running and not being cancelled."""
        with _redis_errors_as_unavailable():
            for key in (_BOOTSTRAP_KEY, _OLD_BOOTSTRAP_KEY):
                stored: Any = self._client.get(key)
                with contextlib.suppress(UnknownJob, UnreadableJob):
                    if stored is None:
                        continue
                    job = self.get(stored.decode(errors="replace"))
                    if job.is_live and not job.record.cancel_requested:
                        return job.job_id
        return None

    def restore_retries(self, job_id: str) -> None:
        """Give a job that is queued or running back the attempts that killed workers have cost it."""
        key = RetrainJob.key_for(job_id)

        def restore(pipe: Any) -> None:
            is_there = pipe.exists(key)
            pipe.multi()
            if is_there:
                pipe.hset(key, "retries_left", MAX_RETRIES)

        with _redis_errors_as_unavailable():
            self._client.transaction(restore, key)

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            UnknownJob: There is no record of this job.
            UnreadableJob: Its record is damaged.
        """
        with _redis_errors_as_unavailable():
            # RQ leaves this to the next worker; here every reader notices that a worker died.
            with _log_damage("RQ's list of running jobs"):
                self._queue.started_job_registry.cleanup()
            record = JobRecord(self._client, job_id).read()
            if record is None:
                raise UnknownJob(f"job {job_id}: not found; it does not exist or its record has been deleted")
            rq_job = self._fetch(job_id)
            position = self._queue.get_job_position(job_id) if rq_job is not None else None
            state = _state(rq_job, record)
            error = None
            if state is JobState.FAILED:
                error = "RQ's entry of this job cannot be read"
                with _log_damage(f"RQ's result of job {job_id}"):
                    error = _failure_reason(rq_job, record)
        return Job(job_id, state, position, error, record)

    def listing(self) -> list[Job]:
        """Return every job that has a record, the newest first; one whose record is damaged is left out and logged."""
        with _redis_errors_as_unavailable():
            job_ids: Any = self._client.zrange(JOBS_KEY, 0, -1, desc=True)
        jobs = []
        for job_id in job_ids:
            try:
                jobs.append(self.get(job_id.decode(errors="replace")))
            except UnknownJob:
                continue
            except UnreadableJob as e:
                log.warning("%s", e)
        return jobs

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, within seconds if it is running.

        Raises:
            UnknownJob: There is no record of this job.
            JobHasEnded: The job finished or failed.
        """
        job = self.get(job_id)
        if job.state is JobState.CANCELLED:
            return job
        if not job.is_live:
            raise JobHasEnded(f"job {job_id}: cannot be cancelled, it has already {job.state}", state=job.state)
        with _redis_errors_as_unavailable():
            JobRecord(self._client, job_id).request_cancel()
            rq_job = self._fetch(job_id)
            if (
                rq_job is not None
                and rq_job.get_status() == JobStatus.QUEUED
                and self._queue.get_job_position(job_id) is not None
            ):
                with contextlib.suppress(InvalidJobOperation):
                    rq_job.cancel()
        return self.get(job_id)

    def events(self, job_id: str, after: str, wait_ms: int = 1000) -> list[JobEvent]:
        """Return a job's events after this event id ("0": all). If there are none, wait up to `wait_ms` for one."""
        with _redis_errors_as_unavailable():
            return JobRecord(self._client, job_id).events(after, wait_ms)

    def follow(self, job_id: str, after: str = "0") -> Iterator[list[JobEvent]]:
        """Yield a job's events in batches until it has ended and all of them were delivered.

        A batch is empty when nothing happened for a second, so that the caller can do something else in between.

        Args:
            job_id: The job.
            after: The id of the event after which to begin; "0" begins with the first.

        Raises:
            UnknownJob: There is no record of this job.
        """
        while True:
            has_ended = not self.get(job_id).is_live  # read before the events: none is added after the end
            batch = self.events(job_id, after, wait_ms=1 if has_ended else 1000)
            if has_ended and not batch:
                return
            after = batch[-1].id if batch else after
            yield batch

    def _submitted_with(self, key: str, request: JsonObject) -> str | None:
        """The job that was submitted with this key, if its record is still stored."""
        stored: Any = self._client.get(_KEY_PREFIX + key)
        job_id: str = (stored or b"").decode(errors="replace")
        record = JobRecord(self._client, job_id).read() if job_id else None
        if record is None:
            return None
        if record.request != request:
            raise KeyReused(KEY_REUSED, job=f"/jobs/{job_id}")
        return job_id

    def _enqueue(self, request: JsonObject) -> str:
        if self._queue.count >= self._max_queued:
            raise JobQueueFull(f"the job queue is full: {self._max_queued} jobs are waiting (MAX_QUEUED_JOBS)")
        remove_old_records(self._client, self._is_live)
        job_id = secrets.token_hex(8)
        JobRecord(self._client, job_id).create(request)
        self._queue.enqueue_call(
            RETRAIN,
            args=(job_id, request),
            job_id=job_id,
            timeout=-1,  # the request's budget ends a training; one that hangs is cancelled or killed
            result_ttl=_KEEP_S,
            failure_ttl=_KEEP_S,
            description=f"retrain {job_id}",
            retry=rq.Retry(max=MAX_RETRIES, enqueue_at_front=True),
        )
        with _log_damage("RQ's list of queued or running jobs"):
            self._move_forward(job_id)
        return job_id

    def _is_live(self, job_id: str) -> bool:
        """Whether RQ has a job that waits or runs."""
        rq_job = self._fetch(job_id)
        status = rq_job.get_status(refresh=False) if rq_job is not None else JobStatus.FAILED
        return status is None or _STATES.get(status, JobState.QUEUED).is_live

    def _move_forward(self, job_id: str) -> None:
        """Move a job that was added at the end before those of models that have more jobs in front of it.

        So models take turns: the first job of each comes before the second one of any. A running job is one of them.
        """

        def move(pipe: Any) -> None:
            queued = [id.decode(errors="replace") for id in pipe.lrange(self._queue.key, 0, -1)]
            in_front = Counter(map(self._model_of, self._queue.started_job_registry.get_job_ids(cleanup=False)))
            turns: dict[str, int] = {}
            for id in queued:
                model = self._model_of(id)
                turns[id] = in_front[model]
                in_front[model] += 1
            pipe.multi()
            later = next((id for id in queued if turns[id] > turns.get(job_id, 0)), None)
            if job_id in turns and later is not None:
                pipe.lrem(self._queue.key, 0, job_id)
                pipe.linsert(self._queue.key, "BEFORE", later, job_id)

        self._client.transaction(move, self._queue.key)

    def _model_of(self, job_id: str) -> str:
        """Return the name of the model that a job trains; where its record is damaged, the default one."""
        stored: Any = self._client.hget(record_key(job_id), "request")
        with contextlib.suppress(*RQ_DAMAGE):
            return str(json.loads(stored).get("model", DEFAULT))
        return DEFAULT

    def _fetch(self, job_id: str) -> rq.job.Job | None:
        try:
            return RetrainJob.fetch(job_id, connection=self._client, serializer=JSONSerializer)
        except NoSuchJobError:
            return None

    def _lock(self) -> Any:
        """Return the lock under which one process at a time counts the queue and adds to it."""
        return self._client.lock(_LOCK_KEY, timeout=10, blocking_timeout=5)


def _state(rq_job: rq.job.Job | None, record: StoredJob) -> JobState:
    if record.result is not None:
        return JobState.CANCELLED if record.result.cancelled else JobState.FINISHED
    if rq_job is None:
        return JobState.FAILED
    status = rq_job.get_status(refresh=False)
    return _STATES.get(status, JobState.QUEUED) if status is not None else JobState.QUEUED


def _failure_reason(rq_job: rq.job.Job | None, record: StoredJob) -> str:
    if record.error is not None:
        return record.error
    result = rq_job.latest_result() if rq_job is not None else None
    traceback = (result.exc_string or "").strip() if result is not None else ""
    if "AbandonedJobError" in traceback:
        return "the worker process died: it was killed, or its machine stopped"
    return traceback.splitlines()[-1] if traceback else "RQ has no entry for this job any more"


@contextlib.contextmanager
def _log_damage(what: str) -> Iterator[None]:
    """Log what RQ cannot read of its own entries, and go on: the other jobs must not suffer from it."""
    try:
        yield
    except RQ_DAMAGE as e:
        log.warning("%s is damaged: %s", what, e)


@contextlib.contextmanager
def _redis_errors_as_unavailable() -> Iterator[None]:
    try:
        yield
    except (redis.RedisError, OSError) as e:
        raise StoreUnavailable(f"Redis does not answer: {e}") from e
