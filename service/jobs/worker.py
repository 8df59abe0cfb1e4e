"""RQ's worker with what a training needs: its death is noticed within seconds, and a device runs one training.

The worker forks for each job, and only the fork loads torch: a process that has used torch's threads cannot fork
safely, and a training in the worker process itself could not be monitored by it. RQ's SpawnWorker would put the Redis
connection's settings, with the password, on a command line that every user of the machine can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
import signal
import socket
import time
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
from rq.timeouts import HorseMonitorTimeoutException

from model.atomic_files import remove_abandoned
from service.errors import StoreUnavailable, UnknownJob, UnreadableJob
from service.jobs.queue import QUEUE, RQ_DAMAGE, JobQueue, RetrainJob, run_folder
from service.jobs.record import OUT_OF_MEMORY, JobRecord, suppress_redis_errors
from service.parent_death import signal_on_parent_death

log = logging.getLogger(__name__)
HEARTBEAT_S = 2
DEAD_AFTER_S = 10  # without a heartbeat for so long, a worker counts as dead and its job goes to another worker
_POLL_S = 0.05  # between two looks at the job's process
_MAINTENANCE_INTERVAL_S = 5  # between two searches for dead workers
_ALIVE_WITHIN_S = 30  # for the health check
_FULL_RETRY_S = 1.0
_BOOT_ID, _GPUS = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/driver/nvidia/gpus")
_KEEP_ENDED_S = 10  # a job that is about to be tried again counts as failed for a moment
_KEEP_UNKNOWN_S = 86_400
OOM_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))
"""Where the kernel counts the processes that it killed for lack of memory: of this container, or of the machine."""


class RetrainWorker(Worker):
    """An RQ worker that runs one training at a time."""

    job_class = RetrainJob

    def __init__(self, client: redis.Redis, runs_dir: Path) -> None:
        """Work on the job queue of this Redis; the jobs' run folders are in `runs_dir`."""
        queue = Queue(QUEUE, connection=client, serializer=JSONSerializer, job_class=RetrainJob)
        super().__init__(
            [queue],
            connection=client,
            serializer=JSONSerializer,
            job_monitoring_interval=HEARTBEAT_S,
            maintenance_interval=_MAINTENANCE_INTERVAL_S,
            worker_ttl=15 + _MAINTENANCE_INTERVAL_S,  # RQ waits for jobs 15 s less than this, then does maintenance
            work_horse_killed_handler=self._on_work_horse_killed,
        )
        self._is_stopping = False
        self._runs_dir = runs_dir
        self._oom_kills = 0  # by the kernel, when the running job began

    def run_maintenance_tasks(self) -> None:
        """Do RQ's maintenance, and remove the files of jobs that have ended."""
        try:
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except RQ_DAMAGE:  # what others wrote there must not end the worker
            log.exception("RQ's registries of jobs are damaged; dead workers may go unnoticed")
        with contextlib.suppress(StoreUnavailable):
            remove_unused_files(self._runs_dir, JobQueue(self.connection, max_queued=0))

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for a job. A Redis whose memory is full ends the wait for a moment, not the worker."""
        while True:
            try:
                return super().dequeue_job_and_maintain_ttl(*args, **kwargs)
            except redis.OutOfMemoryError as error:
                log.warning("Redis is full: %s; the worker tries again in %g s", error, _FULL_RETRY_S)
                time.sleep(_FULL_RETRY_S)

    def heartbeat(self, *args: Any, **kwargs: Any) -> None:
        """Send a heartbeat, with what the health check reads of the key: a full Redis may have evicted it.

        A Redis that is full and evicts nothing costs this heartbeat only.
        """
        with contextlib.suppress(redis.OutOfMemoryError):
            pipeline = kwargs.get("pipeline")
            connection = self.connection if pipeline is None else pipeline
            connection.hset(self.key, mapping={"hostname": self.hostname or "", "pid": self.pid or os.getpid()})
            super().heartbeat(*args, **kwargs)

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork the process of a job; it is killed again if a signal to stop came before its id was known."""
        self._oom_kills = oom_kills()
        super().fork_work_horse(job, queue)
        with contextlib.suppress(OSError):  # the child does the same; whoever is first, its group is its own from here
            os.setpgid(self.horse_pid, self.horse_pid)
        if self._is_stopping:
            self.kill_horse(signal.SIGKILL)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        """Wait for the end of the job's process, and return its id, status and usage, or None each if it is unknown.

        RQ has an alarm end this wait for each heartbeat. One that came at the moment of the end lost the status, and
        with it the worker and the job. So the alarm is ignored, and this ends by itself.

        Raises:
            HorseMonitorTimeoutException: A heartbeat is due.
        """
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        deadline = time.monotonic() + HEARTBEAT_S
        while time.monotonic() < deadline:
            try:
                pid, status, usage = os.wait4(self.horse_pid, os.WNOHANG)
            except ChildProcessError:
                return None, None, None
            if pid:
                return pid, status, usage
            time.sleep(_POLL_S)
        raise HorseMonitorTimeoutException("a heartbeat is due")

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Return the seconds after which the worker of a running job counts as dead."""
        return DEAD_AFTER_S

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Send a heartbeat. An unreachable Redis costs this heartbeat, not the training."""
        with suppress_redis_errors():
            super().maintain_heartbeats(job, execution)

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Run a job in the forked process, which ends with this worker: nobody else would know of it any more."""
        signal_on_parent_death(signal.SIGKILL, self.pid or os.getppid())
        super().main_work_horse(job, queue)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Stop at once on SIGTERM or SIGINT: the running job returns to the front of the queue."""
        self._is_stopping = True
        if self.horse_pid:
            self.kill_horse(signal.SIGKILL)
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Ignore a second signal: the first one has already stopped the job."""

    def _on_work_horse_killed(self, job: Job, pid: int, status: int, usage: Any) -> None:
        self.queues[0].intermediate_queue.remove(job.id)  # it is still there if the process was killed before it began
        record = JobRecord(self.connection, job.id)
        if self._is_stopping:
            job.retries_left = (job.retries_left or 0) + 1  # a stopped worker costs the job no attempt
            record.note("the worker was stopped; the job is queued again")
            return
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and oom_kills() > self._oom_kills:
            job.retries_left = 0
            record.fail(f"{OUT_OF_MEMORY} (it was killed at {usage.ru_maxrss / 2**20:.1f} GiB)")
            return
        ending = (
            f"by signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"exit {os.waitstatus_to_exitcode(status)}"
        )
        reason = f"the training process was killed ({ending})"
        record.fail(f"{reason}, as in all earlier attempts")
        record.note(f"{reason}; attempts left: {job.retries_left or 0}")


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory, in this container or on this machine."""
    for file in OOM_COUNTERS:
        with contextlib.suppress(OSError):
            match = re.search(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)
            if match is not None:
                return int(match[1])
    return 0


def remove_unused_files(runs_dir: Path, queue: JobQueue) -> None:
    """Remove the run folders of jobs that have ended, and the temporary files of writers that were killed.

    A job that ends removes its folder itself. What is left is that of a job whose process was killed for the last time
    or that was cancelled between two attempts. A job without a record may be one of another Redis: its folder stays for
    a day after the last change.
    """
    for folder in runs_dir.iterdir() if runs_dir.is_dir() else []:
        try:
            run_folder(runs_dir, folder.name)
        except ValueError:
            continue  # it is of no job
        if not folder.is_dir():
            continue
        try:
            kept_s = math.inf if queue.get(folder.name).is_live else _KEEP_ENDED_S
        except (UnknownJob, UnreadableJob):
            kept_s = _KEEP_UNKNOWN_S
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > kept_s:
                shutil.rmtree(folder, ignore_errors=True)
    remove_abandoned(runs_dir)


def worker_alive(client: redis.Redis) -> bool:
    """Tell whether a worker of this machine or container sent a heartbeat in the last 30 s."""
    now, within = datetime.now(UTC), timedelta(seconds=_ALIVE_WITHIN_S)
    try:
        workers = Worker.all(connection=client, job_class=RetrainJob, serializer=JSONSerializer)
    except redis.RedisError:
        return False
    # One from the future is from before the clock was set back: a worker that lives has sent another since.
    return any(
        w.hostname == socket.gethostname() and w.last_heartbeat and abs(w.last_heartbeat - now) < within
        for w in workers
    )


@contextlib.contextmanager
def device_lock(device: str, folder: Path) -> Iterator[None]:
    """Hold the lock of a device, so that only one worker of this machine trains on it; wait until it is free.

    Forked trainings inherit the lock: it is free when the last of them has ended, even if their worker was killed.

    Args:
        device: DEVICE.
        folder: The folder of the lock file; it is created if it does not exist. Several machines may share it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".worker-{_machine()}-{_device_id(device)}.lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"worker  waiting: another worker of this machine trains on {device}", flush=True)
            fcntl.flock(f, fcntl.LOCK_EX)
        os.set_inheritable(f.fileno(), True)
        yield


def _machine() -> str:
    """What names this machine until its next start, in each of its containers; their host names are their own."""
    try:
        return _BOOT_ID.read_text()[:8]
    except OSError:
        return socket.gethostname()


def _device_id(device: str) -> str:
    """What names the GPUs that this process would train on, or the CPU; CUDA cannot be initialized before a fork."""
    gpus = sorted(path.name for path in _GPUS.glob("*")) if device != "cpu" else []
    if not gpus:
        return "cpu"
    visible = [os.environ.get(name, "") for name in ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")]
    return "gpu-" + hashlib.sha256(repr((gpus, visible)).encode()).hexdigest()[:8]
