"""Training beside another busy process: its threads sleep while they wait, and take no core for nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers import ROOT

TEXT = "To be, or not to be: that is the question.\n" * 1500
STEPS = 120


def cpu_seconds_of(n: int, folder: Path, policy: str = "") -> tuple[float, float]:
    """Train n models at once; return the processor time and the time of each, in seconds."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    environment = {**os.environ, "LONGHAND_HOME": str(folder)}
    environment.pop("OMP_WAIT_POLICY", None)
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    options = ["--items", "text", "--steps", str(STEPS), "--validations", "2", "--no-promote"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    runs = []
    for i in range(n):
        out = ["--out", str(folder / f"{time.monotonic_ns()}-{i}")]
        command = [sys.executable, "-m", "model", "train", str(text), *options, *out]
        runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
    assert [run.wait() for run in runs] == [0] * n
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent / n, time.monotonic() - began


@pytest.mark.usefixtures("native_code")
def test_two_trainings_at_once_cost_what_they_cost_alone(tmp_path: Path) -> None:
    """In processor time, which other programs on this machine change little; threads that spin would double it."""
    alone, alone_s = cpu_seconds_of(1, tmp_path)
    both, both_s = cpu_seconds_of(2, tmp_path)
    print(f"alone {alone:.1f} s of processor time in {alone_s:.1f} s; two at once {both:.1f} s each in {both_s:.1f} s")
    assert both <= 1.5 * alone


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
