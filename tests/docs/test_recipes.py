"""The recipes of docs/lists.md run from an empty folder as they are written, with smaller budgets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

RECIPES = (ROOT / "docs" / "lists.md").read_text()
BUDGET = "--steps 250 --validations 2 --n-hidden 64 --lr 0.02"


def run(recipe: str, folder: Path) -> None:
    """Run the commands of a recipe in an empty folder, where `longhand` is the one of this checkout."""
    programs = folder / ".programs"
    programs.mkdir()
    for name, module in (
        ("longhand", "-c 'import sys; from service.cli import main; sys.exit(main())'"),
        ("python", ""),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module} "$@"\n')
        (programs / name).chmod(0o755)
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", recipe, re.DOTALL))
    assert "--minutes 1 " in commands
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-e", "-c", commands.replace("--minutes 1", BUDGET)],
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def recipe(title: str) -> str:
    """The section with this title."""
    return RECIPES.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.usefixtures("native_code")
def test_names(tmp_path: Path) -> None:
    """New names, none of them in the training part; and names with the requested beginning."""
    run(recipe("Names"), tmp_path)
    known, new = ((tmp_path / name).read_text().splitlines() for name in ("names.txt", "new.txt"))
    assert len(known) > 1000
    assert len(set(new)) == 20
    assert len(set(new) & set(known)) <= 2  # one of the validation part is new to the model
    smiling = [json.loads(line) for line in (tmp_path / "smiling.jsonl").read_text().splitlines()]
    assert len(smiling) == 10
    assert all(item["text"].startswith("smiling ") and item["logprob"] < 0 for item in smiling)


@pytest.mark.usefixtures("native_code")
def test_log_lines(tmp_path: Path) -> None:
    """The three lines that do not belong there are found, among few others."""
    run(recipe("Log lines"), tmp_path)
    alarms = (tmp_path / "alarms.txt").read_text()
    for odd in ("/etc/passwd", "INFO ben 10.0.0.9", "TRACE"):
        assert odd in alarms
    assert len(alarms.splitlines()) < 10


@pytest.mark.usefixtures("native_code")
def test_molecules(tmp_path: Path) -> None:
    """The molecules of the column are new, different, and mostly closed; no scaffold is in both parts."""
    run(recipe("Molecules"), tmp_path)
    known = {line.split(",")[0] for line in (tmp_path / "molecules.csv").read_text().splitlines()[1:]}
    new = (tmp_path / "new.smi").read_text().splitlines()
    assert len(known) > 10_000
    assert len(set(new)) == 1000
    assert len(set(new) & known) < 200  # those of the held-out scaffolds are new to the model
    closed, of = (tmp_path / "closed.txt").read_text().split(" of ")
    assert int(of) == 1000
    assert int(closed) > 500


@pytest.mark.usefixtures("native_code")
def test_code(tmp_path: Path) -> None:
    """The lines begin as requested, most are new, Python accepts some; a misspelled name ranks above the right one."""
    run(recipe("Code"), tmp_path)
    known = {json.loads(line)["line"] for line in (tmp_path / "functions.jsonl").read_text().splitlines()}
    new = (tmp_path / "new.py").read_text().splitlines()
    assert len(set(new)) == 40
    assert all(line.startswith("def get_") for line in new)
    assert len(set(new) & known) < 10
    accepted, of = (tmp_path / "accepted.txt").read_text().split(" of ")
    assert int(of) == 40
    assert int(accepted) > 10
    right, misspelled = (tmp_path / "names.txt").read_text().splitlines()
    assert float(misspelled.split()[1]) > float(right.split()[1])
