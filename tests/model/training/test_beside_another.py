"""Training beside another busy process: its threads sleep while they wait, and take no core for nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from model.checkpoints import registry
from tests.conftest import random_checkpoint
from tests.servers import ROOT, Service

TEXT = "To be, or not to be: that is the question.\n" * 600
STEPS = 80
MINUTES = float(os.environ.get("BESIDE_MINUTES", "0"))


def cpu_seconds_of_two(folder: Path, policy: str = "", steps: int = STEPS) -> float:
    """Train two models at once; return the processor time of both, in seconds."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    environment = {**os.environ, "LONGHAND_HOME": str(folder)}
    environment.pop("OMP_WAIT_POLICY", None)
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    options = ["--items", "text", "--steps", str(steps), "--validations", "1", "--no-promote"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = []
    for i in range(2):
        command = [
            sys.executable,
            "-m",
            "model",
            "train",
            str(text),
            *options,
            "--out",
            str(folder / f"{policy}{steps}-{i}"),
        ]
        runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [run.wait() for run in runs] == [0, 0]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.usefixtures("native_code")
def test_two_trainings_at_once_do_not_spin(tmp_path: Path) -> None:
    """In processor time, which other programs change little: threads that spin need far more for the same steps."""
    start = cpu_seconds_of_two(tmp_path, steps=1)
    sleeping, spinning = (cpu_seconds_of_two(tmp_path, policy) - start for policy in ("", "ACTIVE"))
    print(f"processor time of two trainings at once: {sleeping:.1f} s, with threads that spin {spinning:.1f} s")
    assert sleeping <= 0.8 * spinning


def test_the_threads_wait_by_sleeping() -> None:
    """The policy is set before torch is loaded, and an operator's own is kept."""
    program = "import os, model; print(os.environ['OMP_WAIT_POLICY'])"
    for own, expected in (("", "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        environment |= {"OMP_WAIT_POLICY": own} if own else {}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


@dataclass(frozen=True)
class Run:
    """A training of some minutes, as its log tells it."""

    steps_per_s: float
    elapsed_s: float  # from the first step to the end of the last measurement


def trainings(folder: Path, n: int, minutes: float) -> list[Run]:
    """Train `n` models at once for so many minutes; the text is Shakespeare-sized."""
    folder.mkdir()
    text = folder / "text.txt"
    text.write_text(TEXT * 40)
    environment = {**os.environ, "LONGHAND_HOME": str(folder)}
    options = ["--items", "text", "--minutes", str(minutes), "--no-promote"]
    outs = [folder / f"{i}" for i in range(n)]
    commands = [[sys.executable, "-m", "model", "train", str(text), *options, "--out", str(out)] for out in outs]
    runs = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) for command in commands]
    assert [run.wait() for run in runs] == [0] * n
    return [_read(out) for out in outs]


def _read(out: Path) -> Run:
    (log,) = out.rglob("metrics.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    (checkpoint,) = out.glob("val*.safetensors")
    began = (log.parent / "run.json").stat().st_mtime
    return Run(last["step"] / last["elapsed_s"], checkpoint.stat().st_mtime - began)


needs_minutes = pytest.mark.skipif(not MINUTES, reason="takes minutes: make beside")


@needs_minutes
@pytest.mark.usefixtures("native_code")
def test_two_trainings_share_the_machine(tmp_path: Path) -> None:
    """Each has at least 0.8 of the half that is its fair share, and both end in time."""
    (alone,) = trainings(tmp_path / "alone", 1, MINUTES)
    both = trainings(tmp_path / "both", 2, MINUTES)
    report("two trainings", alone, both)


@needs_minutes
@pytest.mark.usefixtures("native_code")
def test_a_training_beside_a_serving_engine(tmp_path: Path) -> None:
    """The same, where the other one is a service that writes as many texts as it can."""
    store = tmp_path / "store"
    store.mkdir()
    registry.promote(random_checkpoint(n_hidden=512).save(store))
    (alone,) = trainings(tmp_path / "alone", 1, MINUTES)
    with Service(CHECKPOINT_DIR=str(store), REDIS_URL="", SLOTS="16") as service:
        is_over = threading.Event()

        def write() -> None:
            with httpx.Client(base_url=service.url, timeout=120) as client:
                while not is_over.is_set():
                    assert client.post("/generate", json={"max_chars": 2000}).status_code == 200

        with ThreadPoolExecutor(16) as clients:
            writing = [clients.submit(write) for _ in range(16)]
            try:
                beside = trainings(tmp_path / "beside", 1, MINUTES)
            finally:
                is_over.set()
            for element in writing:
                element.result()
    report("beside a service", alone, beside)


def report(name: str, alone: Run, runs: list[Run]) -> None:
    """Print and check the shares and the times."""
    for run in runs:
        share, late = run.steps_per_s / (alone.steps_per_s / 2), run.elapsed_s / (60 * MINUTES)
        print(f"{name}: {run.steps_per_s:.0f} of {alone.steps_per_s:.0f} steps/s, {share:.2f} of the fair half; ")
        print(f"  ended after {late:.3f} of its minutes (alone {alone.elapsed_s / (60 * MINUTES):.3f})")
        assert share >= 0.8
        assert late <= 1.1
