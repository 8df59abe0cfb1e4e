"""Every command that writes, on a disk that takes no more: the operating system itself ends the write half-way."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import random_checkpoint
from tests.servers import ROOT

LIMIT_BYTES = 100_000  # of a file: less than a checkpoint of the network below


def run_limited(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose writes beyond the limit fail; Python ignores the signal that comes with the error."""
    return subprocess.run(
        [sys.executable, "-m", "model", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = random_checkpoint(n_layers=1, n_hidden=128).save(tmp_path / "store")
    assert path.stat().st_size > LIMIT_BYTES
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "MODEL", "--format", "onnx", "--out", "FOLDER/model.onnx"),
        ("export", "MODEL", "--format", "html", "--out", "FOLDER/model.html"),
        ("export", "MODEL", "--format", "hf", "--out", "FOLDER/model"),
        ("train", "TEXT", "--n-hidden", "128", "--steps", "6", "--out", "FOLDER/models"),
    ],
    ids=["onnx", "html", "hf", "train"],
)
def test_nothing_half_written_is_left(arguments: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    """One line with the reason, exit code 1; no file that a reader could take for whole, and the old ones as before."""
    text = tmp_path / "text.txt"
    text.write_text("hello there\n" * 2000)
    before = contents(tmp_path)
    named = {"MODEL": str(model), "TEXT": str(text)}
    done = run_limited(*(named.get(a, a.replace("FOLDER", str(tmp_path / "out"))) for a in arguments))
    assert done.returncode == 1, done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "File too large" in errors[0]
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    half_written = (".tmp", ".onnx", ".safetensors", ".html", "promoted.json")
    assert not [name for name in after.keys() - before.keys() if name.endswith(half_written)], after.keys()
