"""The function that RQ calls in the forked process: one training, connected to its record and its cancellation."""

from __future__ import annotations

import _thread
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import rq
import torch

from model.checkpoints import registry
from model.checkpoints.names import DEFAULT, store_folder
from model.errors import CheckpointError, ModelError
from model.network.device import resolve_device
from service.errors import ServiceError
from service.jobs.queue import JobQueue, run_folder
from service.jobs.record import OUT_OF_MEMORY, JobRecord, JobResult, JsonObject
from service.jobs.request import JobRequest
from service.jobs.training import JobEnvironment, Training
from service.settings import Settings, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.promotions import RedisPromotions

_POLL_S = 0.25
_CANCEL_GRACE_S = 2.0  # a cancelled training may end by itself for so long, then it is interrupted
_NICENESS = 10  # a training shares its machine with the service; someone waits for the model of a bootstrap job


def retrain(job_id: str, request: JsonObject) -> None:
    """Run a job and store its result in its record.

    Args:
        job_id: The job.
        request: What `JobRequest.as_dict` made.

    Raises:
        ModelError: The training cannot work; RQ does not retry it.
        ServiceError: The same, for a reason that the service found.
        redis.RedisError: Redis is unreachable at the start or the end; RQ retries the job.
        ValueError: The id is none that the queue makes.
    """
    settings = read_settings()
    run_dir = run_folder(settings.runs_dir, job_id)
    client = connect(settings.queue_url, breaker=False)
    record = JobRecord(client, job_id)
    attempt = record.begin_attempt()
    if attempt > 1:
        record.note(f"attempt {attempt}")
    with _JobMonitor(record) as monitor:
        try:
            job_request = JobRequest.from_dict(request)
            folder = store_folder(settings.checkpoint_dir, job_request.model)
            is_bootstrap = record.set_if_absent(
                "is_bootstrap", _nothing_is_promoted(folder) or _was_queued_by_a_start(settings, client, job_id)
            )
            if not is_bootstrap or job_request.model != DEFAULT:
                os.nice(_NICENESS)
            training = Training(
                job_request,
                _environment(settings, folder, run_dir),
                record,
                is_bootstrap=is_bootstrap,
                is_cancelled=lambda: monitor.is_cancelled,
                promotions=RedisPromotions(client),
            )
            result = training.run()
        except KeyboardInterrupt:  # interrupted where the training has nothing to keep yet
            result = JobResult(cancelled=True)
        except (ModelError, ServiceError) as e:
            _fail_for_good(record, str(e), run_dir)
            raise
        except (MemoryError, RuntimeError) as e:
            if not _is_out_of_memory(e):
                raise
            _fail_for_good(record, OUT_OF_MEMORY, run_dir)
            raise
        monitor.disarm()
    if result.cancelled:
        shutil.rmtree(run_dir, ignore_errors=True)
    record.finish(result)


def _fail_for_good(record: JobRecord, reason: str, run_dir: Path) -> None:
    """Store why a job failed, let RQ make no other attempt, which would fail in the same way, and remove its files."""
    record.fail(reason)
    rq_job = rq.get_current_job()
    if rq_job is not None:
        rq_job.retries_left = 0
    shutil.rmtree(run_dir, ignore_errors=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. torch raises RuntimeError for it, on a CPU without a class of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _nothing_is_promoted(folder: Path) -> bool:
    try:
        return registry.promoted_path(folder) is None
    except CheckpointError:
        return False


def _was_queued_by_a_start(settings: Settings, client: Any, job_id: str) -> bool:
    """Whether a start queued the job because the promoted model is of other texts than it names."""
    return JobQueue(client, settings.max_queued_jobs).bootstrap_job_id() == job_id


def _environment(settings: Settings, folder: Path, run_dir: Path) -> JobEnvironment:
    device = resolve_device("cpu" if settings.device == "cpu" else "auto")  # as the service does: the CPU without a GPU
    return JobEnvironment(
        checkpoint_dir=folder,
        run_dir=run_dir,
        corpora=Corpora(settings.corpora_dir, settings.max_corpus_bytes),
        device=device,
        keep_checkpoints=settings.keep_checkpoints,
    )


class _JobMonitor:
    """A thread beside the training that polls for its cancellation and for the death of its worker."""

    def __init__(self, record: JobRecord) -> None:
        self.is_cancelled = record.cancel_requested
        self._record = record
        self._armed = True
        self._worker_pid = os.getppid()
        self._thread = threading.Thread(target=self._poll, name="job-monitor", daemon=True)

    def __enter__(self) -> _JobMonitor:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # RQ ignores SIGINT; here it interrupts a training
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disarm()

    def disarm(self) -> None:
        """Interrupt nothing from now on."""
        self._armed = False

    def _poll(self) -> None:
        interrupt_at = time.monotonic() + _CANCEL_GRACE_S if self.is_cancelled else None
        while self._armed:
            time.sleep(_POLL_S)
            if os.getppid() != self._worker_pid:
                os._exit(1)  # the worker died: its job goes to another one, which must train alone
            if not self.is_cancelled and self._record.cancel_requested:
                self.is_cancelled = True
                interrupt_at = time.monotonic() + _CANCEL_GRACE_S
            if interrupt_at is not None and time.monotonic() > interrupt_at and self._armed:
                interrupt_at = None
                _thread.interrupt_main()
