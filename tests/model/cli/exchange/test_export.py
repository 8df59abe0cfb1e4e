"""python -m model export, as its user sees it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
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


def test_a_page_is_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the name of the model's text, or of its file."""
    assert main(["export", str(path), "--format", "html"]) == 0
    page = path.with_name(f"{path.stem}-page.html")
    assert capsys.readouterr().out == f"{page}\n"
    assert f"<title>{path.stem}</title>" in page.read_text()
    other = replace(random_checkpoint(), corpus="my diary", step=11).save(path.parent)
    assert main(["export", str(other), "--format", "html", "--out", str(path.with_name("d.html"))]) == 0
    assert "<title>my diary</title>" in path.with_name("d.html").read_text()


def test_wrong_options(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the option, the value and what is expected; nothing is written."""
    gru = str(random_checkpoint("gru").save(path.parent / "gru"))
    for arguments, message in (
        ([str(path), "--format", "onnx", "--out", "m.bin"], "out: got 'm.bin', expected a file that ends in .onnx"),
        ([str(path), "--format", "html", "--out", "m.onnx"], "out: got 'm.onnx', expected a file that ends in .html"),
        ([str(path), "--format", "html", "--precision", "fp32"], "precision: got 'fp32', expected int8"),
        ([str(path), "--format", "hf", "--precision", "int8"], "precision: got 'int8', expected fp32"),
        ([str(path), "--format", "html", "--items", "5"], "items: got '5', expected none: it is for the model card"),
        ([str(path), "--format", "onnx", "--run", "r"], "run: got 'r', expected none: it is for the model card"),
        ([gru, "--format", "html"], "format: the model's cell is gru, expected onnx or hf: pages run an lstm"),
    ):
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}"), error
        assert error.count("\n") == 1
    assert main(["export", str(path.parent / "none.safetensors"), "--format", "onnx"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert {file.name for file in path.parent.iterdir()} == {path.name, "gru"}


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
