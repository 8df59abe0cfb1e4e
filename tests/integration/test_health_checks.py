"""What an engine runs to see whether a container is well, and what a trainer does first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import ROOT, RedisServer, Service, Worker, eventually


def run(*module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *module]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_an_api_is_well_when_it_is_ready(service: Service) -> None:
    """/readyz by the port of the settings; 0.0.0.0 is no address to ask."""
    well = run("service.operations.healthcheck", HOST="0.0.0.0", PORT=str(service.port))
    assert (well.returncode, well.stdout.split()[0]) == (0, "200")
    nobody = run("service.operations.healthcheck", PORT="1")
    assert nobody.returncode == 1
    assert nobody.stdout.startswith("no answer: ")


def test_a_trainer_queues_the_first_model_and_is_heard_of(tmp_path: Path) -> None:
    """Where there is no model its training is in the line, once; a worker is well from its first word on."""
    redis = RedisServer()
    redis.start()
    places = {"CHECKPOINT_DIR": "models", "CORPORA_DIR": "corpora", "RUNS_DIR": "runs"}
    environment = {"REDIS_URL": redis.url, **{name: str(tmp_path / folder) for name, folder in places.items()}}
    assert run("service.jobs", "--check", **environment).returncode == 1
    queued = [run("service.jobs.bootstrap", "--minutes", "5", **environment).stdout.splitlines()[1] for _ in range(2)]
    assert queued[0].startswith("train   queued: /jobs/")
    assert queued[1] == queued[0].replace("queued:", "queued already:")
    worker = Worker(**environment)
    worker.start()
    try:
        eventually(lambda: run("service.jobs", "--check", **environment).returncode == 0)
    finally:
        worker.stop()
        redis.remove()
    assert run("service.jobs", "--check", **environment).returncode == 1
