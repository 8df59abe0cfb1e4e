"""A worker that is told to stop while it forks a training does not wait for that training."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from rq import Worker

from service.jobs.worker import RetrainWorker
from tests.servers import RedisServer, eventually


def test_a_signal_between_the_fork_and_its_id_kills_the_training(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler runs before the worker knows the process that it would have to kill."""
    worker = RetrainWorker(redis.Redis.from_url(redis_server.url), tmp_path)
    fork = os.fork

    def fork_and_signal() -> int:
        pid = fork()
        if pid:
            worker.request_stop(signal.SIGTERM, None)
        return pid

    monkeypatch.setattr(Worker, "request_stop", lambda *_: None)
    monkeypatch.setattr(os, "fork", fork_and_signal)
    monkeypatch.setattr(worker, "main_work_horse", lambda *_: time.sleep(600))
    job: Any = SimpleNamespace(id="0" * 32)
    worker.fork_work_horse(job, worker.queues[0])
    status: list[int] = []

    def has_ended() -> bool:
        pid, ended = os.waitpid(worker.horse_pid, os.WNOHANG)
        status.extend([ended] if pid else [])
        return bool(pid)

    try:
        eventually(has_ended)
    finally:
        if not status:
            os.kill(worker.horse_pid, signal.SIGKILL)
            os.waitpid(worker.horse_pid, 0)
        worker.connection.close()
    assert os.WTERMSIG(status[0]) == signal.SIGKILL
