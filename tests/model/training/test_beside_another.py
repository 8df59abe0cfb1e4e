"""Training beside another busy process: its threads sleep while they wait, and take no core for nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

TEXT = "To be, or not to be: that is the question.\n" * 600
STEPS = 40


def cpu_seconds_of_two(folder: Path, policy: str = "") -> float:
    """Train two models at once; return the processor time of both, in seconds."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    environment = {**os.environ, "LONGHAND_HOME": str(folder)}
    environment.pop("OMP_WAIT_POLICY", None)
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    options = ["--items", "text", "--steps", str(STEPS), "--validations", "2", "--no-promote"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    runs = []
    for i in range(2):
        command = [sys.executable, "-m", "model", "train", str(text), *options, "--out", str(folder / f"{policy}{i}")]
        runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [run.wait() for run in runs] == [0, 0]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.usefixtures("native_code")
def test_two_trainings_at_once_do_not_spin(tmp_path: Path) -> None:
    """In processor time, which other programs change little: threads that spin need far more for the same steps."""
    sleeping, spinning = cpu_seconds_of_two(tmp_path), cpu_seconds_of_two(tmp_path, "ACTIVE")
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
