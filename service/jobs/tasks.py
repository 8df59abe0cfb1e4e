"""What RQ calls in the forked process: one training, wired to its record, its canceller and its worker's life."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
import time
from typing import Any

from rq import get_current_job

from model.checkpoints import registry
from model.errors import CheckpointError, ModelError
from model.network.device import resolve_device
from service.errors import ServiceError
from service.jobs.record import Record
from service.jobs.training import Places, Training
from service.settings import Settings, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.promotions import RedisPromotions

log = logging.getLogger(__name__)
_LOOK_S = 0.25
_PATIENCE_S = 2.0  # how long a cancelled run may take to end by itself before it is interrupted where it stands
_NICE = 10  # a training shares its machine with the texts that are being written; a first one, with none


def retrain(job_id: str, wanted: dict[str, Any]) -> None:
    """Run a job to its end; its result goes into its record. Raised: what RQ is to retry or to call failed."""
    settings = read_settings()
    client = connect(settings.queue_url)
    record = Record(client, job_id)
    attempt = record.begin()
    if attempt > 1:
        record.note(f"attempt {attempt}")
    with _Watch(record) as watch:
        try:
            is_first = record.once("is_first", _nothing_promoted(settings))
            if not is_first:
                os.nice(_NICE)
            training = Training(
                wanted,
                _places(settings, job_id),
                record,
                is_first=is_first,
                is_cancelled=lambda: watch.cancelled,
                announce=RedisPromotions(client).announce,
            )
            result = training.run()
        except KeyboardInterrupt:  # between the parts of a run that expect it
            result = {"cancelled": True, "checkpoint": None, "decision": None}
        except (ModelError, ServiceError) as e:
            record.fail(str(e))
            job = get_current_job()
            if job is not None:
                job.retries_left = 0  # trying again would fail in the same way
            raise
        watch.disarm()
    record.end(result)


def _nothing_promoted(settings: Settings) -> bool:
    try:
        return registry.promoted_path(settings.checkpoint_dir) is None
    except CheckpointError:
        return False


def _places(settings: Settings, job_id: str) -> Places:
    return Places(
        checkpoints=settings.checkpoint_dir,
        run=settings.runs_dir / job_id,
        corpora=Corpora(settings.corpora_dir, settings.max_corpus_bytes),
        device=resolve_device(settings.device),
        keep_models=settings.keep_models,
    )


class _Watch:
    """A thread beside the training: sees that it was cancelled, and that its worker is gone."""

    def __init__(self, record: Record) -> None:
        self.cancelled = record.is_cancelled
        self._record = record
        self._armed = True
        self._worker = os.getppid()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def __enter__(self) -> _Watch:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # RQ ignores it; here it is the way to interrupt a run
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()

    def disarm(self) -> None:
        """From now on nothing is interrupted."""
        self._armed = False

    def _loop(self) -> None:
        interrupt_at = time.monotonic() + _PATIENCE_S if self.cancelled else None
        while self._armed:
            time.sleep(_LOOK_S)
            if os.getppid() != self._worker:
                os._exit(1)  # nobody would know of this run any more, and another may begin it again
            if not self.cancelled and self._record.is_cancelled:
                self.cancelled = True
                interrupt_at = time.monotonic() + _PATIENCE_S
            if interrupt_at is not None and time.monotonic() > interrupt_at and self._armed:
                interrupt_at = None
                _thread.interrupt_main()
