"""The program of docs/export.md is run as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from model.cli import main
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import random_checkpoint
from tests.servers import ROOT

PROGRAM = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)[0]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_program_writes_our_text_with_onnxruntime_alone(cell: str, tmp_path: Path) -> None:
    """Without torch and without Longhand it writes the greedy text of the service, and a seed's text twice."""
    assert len([line for line in PROGRAM.splitlines() if line]) <= 30
    checkpoint = random_checkpoint(cell)
    path = checkpoint.save(tmp_path)
    assert main(["export", str(path), "--format", "onnx"]) == 0
    program = f"import sys\nsys.modules.update(dict.fromkeys(['torch', 'model', 'onnx']))\n{PROGRAM}"

    def run(temperature: float, seed: int) -> str:
        command = [sys.executable, "-c", program, str(path.with_suffix(".onnx")), "hello", str(temperature), str(seed)]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    stepper, _ = choose(checkpoint.network(), n_slots=1, device="cpu")
    ours = "".join(write(stepper, checkpoint.vocab, "hello", 500, SamplingParams(temperature=0)))
    assert run(0, 1) == ours
    assert run(0.8, 1) == run(0.8, 1) != run(0.8, 2)
