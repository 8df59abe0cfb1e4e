"""python -m model export, as its user sees it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from model.cli import EXTRAS, main
from tests.conftest import random_checkpoint
from tests.servers import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return random_checkpoint().save(tmp_path)


def test_the_file_lies_beside_the_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its path is printed; int8 has a name of its own; --out names another."""
    for arguments, name in (
        ([], f"{path.stem}.onnx"),
        (["--precision", "int8"], f"{path.stem}-int8.onnx"),
        (["--out", str(path.parent / "other" / "m.onnx")], "other/m.onnx"),
    ):
        assert main(["export", str(path), "--format", "onnx", *arguments]) == 0
        assert capsys.readouterr().out == f"{path.parent / name}\n"
        assert (path.parent / name).stat().st_size > 1000


def test_wrong_options(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the option, the value and what is expected; nothing is written."""
    assert main(["export", str(path), "--format", "onnx", "--out", "m.bin"]) == 2
    assert capsys.readouterr().err == "error: out: got 'm.bin', expected a file that ends in .onnx\n"
    assert main(["export", str(path.parent / "none.safetensors"), "--format", "onnx"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_package_that_is_missing_is_named(path: Path) -> None:
    """Without onnx the error says how it is installed, in the version that the tests have."""
    program = f"""
import runpy, sys
sys.modules["onnx"] = None
sys.argv[1:] = ["export", {str(path)!r}, "--format", "onnx"]
runpy.run_module("model", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    expected = (
        f"error: this command needs onnx, which is not installed here; install it with pip install {EXTRAS['onnx']}\n"
    )
    assert done.stderr == expected
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"] == {name: [pin] for name, pin in EXTRAS.items()}
    assert set(EXTRAS.values()) <= set((ROOT / "tests" / "requirements.txt").read_text().splitlines())
