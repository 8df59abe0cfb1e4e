"""The health checks of the containers, and the bootstrap job that a trainer queues first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import ROOT, RedisServer, Service, Worker, eventually


def run(*module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_an_api_is_healthy_when_it_is_ready(service: Service) -> None:
    """It requests /readyz on the port of the settings, and on loopback where HOST is 0.0.0.0."""
    healthy = run("service.operations.healthcheck", HOST="0.0.0.0", PORT=str(service.port))
    assert (healthy.returncode, healthy.stdout.split()[0]) == (0, "200")
    unreachable = run("service.operations.healthcheck", PORT="1")
    assert unreachable.returncode == 1
    assert unreachable.stdout.startswith("no response: ")


def test_a_trainer_queues_the_bootstrap_job_and_sends_heartbeats(tmp_path: Path) -> None:
    """Without a model the bootstrap job is queued, once; a worker is healthy from its first heartbeat on."""
    redis = RedisServer()
    redis.start()
    folders = {"CHECKPOINT_DIR": "models", "CORPORA_DIR": "corpora", "RUNS_DIR": "runs"}
    environment = {"REDIS_URL": redis.url, **{name: str(tmp_path / folder) for name, folder in folders.items()}}
    assert run("service.jobs", "--healthcheck", **environment).returncode == 1
    submit = ("service.jobs", "--bootstrap-only", "--minutes", "5")
    queued = [run(*submit, **environment).stdout.splitlines()[1] for _ in range(2)]
    assert queued[0].startswith("train   queued: /jobs/")
    assert queued[1] == queued[0].replace("queued:", "queued already:")
    worker = Worker(**environment)
    worker.start()
    try:
        eventually(lambda: run("service.jobs", "--healthcheck", **environment).returncode == 0)
    finally:
        worker.stop()
        redis.remove()
    assert run("service.jobs", "--healthcheck", **environment).returncode == 1
