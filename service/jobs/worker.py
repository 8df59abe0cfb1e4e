"""RQ's worker, as a training needs it: noticed within seconds when it dies, and one training at a time on a device.

It forks for each job, and only the fork loads torch: a process that has used torch's threads cannot fork safely, and
one that trains in the worker itself could not be watched by it. RQ's other way, to spawn, would put the settings of the
Redis connection, its password too, on a command line that every user of the machine can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import redis
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from service.jobs.queue import QUEUE, RetrainJob
from service.jobs.record import Record

BEAT_S = 2
DEAD_AFTER_S = 10  # a worker that has not been heard of for so long is dead, and its job goes to another
_IDLE_LOOK_S = 5
_HEARD_S = 30  # a worker that is well is heard of every few seconds


class RetrainWorker(Worker):
    """Runs trainings, one at a time."""

    job_class = RetrainJob

    def __init__(self, client: redis.Redis) -> None:
        queue = Queue(QUEUE, connection=client, serializer=JSONSerializer, job_class=RetrainJob)
        super().__init__(
            [queue],
            connection=client,
            serializer=JSONSerializer,
            job_monitoring_interval=BEAT_S,
            maintenance_interval=_IDLE_LOOK_S,
            worker_ttl=15 + _IDLE_LOOK_S,  # RQ waits for jobs 15 s less than this, then looks after dead workers
            work_horse_killed_handler=self._was_killed,
        )
        self._leaving = False

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        return DEAD_AFTER_S

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """A Redis that is away for a moment costs a heartbeat, not the training."""
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            super().maintain_heartbeats(job, execution)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop now: the training that runs goes back to the front of the line, for whoever works next."""
        self._leaving = True
        if self.horse_pid:
            self.kill_horse(signal.SIGKILL)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """A second signal changes nothing: there is nothing left to wait for."""

    def _was_killed(self, job: Job, pid: int, status: int, usage: Any) -> None:
        self.queues[0].intermediate_queue.remove(job.id)  # where it is still, when killed before it began
        record = Record(self.connection, job.id)
        if self._leaving:
            job.retries_left = (job.retries_left or 0) + 1  # this was no fault of the job's
            record.note("the worker was stopped; the job goes on when one is there again")
            return
        how = (
            f"by signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"exit {os.waitstatus_to_exitcode(status)}"
        )
        reason = f"the training process was killed ({how})"
        record.fail(f"{reason}, and so were all attempts before")
        record.note(f"{reason}; {job.retries_left or 0} attempts are left")


def worker_alive(client: redis.Redis) -> bool:
    """Whether a worker of this machine, or container, has been heard of in the last 30 s."""
    since = datetime.now(UTC) - timedelta(seconds=_HEARD_S)
    try:
        workers = Worker.all(connection=client, job_class=RetrainJob, serializer=JSONSerializer)
    except redis.RedisError:
        return False
    return any(w.hostname == socket.gethostname() and w.last_heartbeat and w.last_heartbeat > since for w in workers)


@contextlib.contextmanager
def device_lock(device: str, folder: Path) -> Iterator[None]:
    """Wait until no other worker of this machine trains on this device.

    The lock is inherited by the forks: it is free only when the last training is gone, however its worker ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".worker-{device}.lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"worker  another one trains on {device} here; waiting for its place", flush=True)
            fcntl.flock(f, fcntl.LOCK_EX)
        os.set_inheritable(f.fileno(), True)
        yield
