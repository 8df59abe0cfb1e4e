"""The README's commands run as they stand, in its order: in an empty folder, against a service of this checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import ROOT, RedisServer, Service

README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"^```sh\n(.*?)^```$", README, re.M | re.S) for line in block.splitlines()]
BUDGET = "--steps 60 --validations 2 --n-hidden 48"
TEXT = "KING.\nTo be, or not to be: that is the question.\n\nQUEEN.\nIt is not.\n\n" * 60
NAMES = "\n".join(f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "ra", "los", "min", "dor"))


def python_m_model(*arguments: str, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "model", *arguments],
        cwd=ROOT,
        env={**os.environ, "LONGHAND_HOME": str(folder / "data")},
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Iterator[tuple[Path, Service]]:
    """A folder with the reader's names.txt and this environment, and what `make serve` would have started."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "names.txt").write_text(NAMES)
    (folder / "king.txt").write_text(TEXT)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / ".venv" / "bin" / "python").chmod(0o755)
    served = folder / "served"
    python_m_model("train", str(folder / "king.txt"), "--out", str(served), *BUDGET.split(), folder=folder)
    with Service(CHECKPOINT_DIR=str(served), REDIS_URL=redis_server.url) as service:
        yield folder, service


def run(command: str, folder: Path, service: Service) -> str:
    """Run a command of the README; only the budget and the address differ."""
    environment = {**os.environ, "LONGHAND_HOME": str(folder / "data"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", command.replace("--minutes 1", BUDGET).replace("localhost:8000", service.url)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_shows_what_is_tested_here() -> None:
    """make, curl and python -m model; a command of another kind would need a test of its own."""
    assert {command.split()[0] for command in COMMANDS} == {"make", "curl", ".venv/bin/python"}


def test_make_has_the_targets_and_variables() -> None:
    """`make -n` accepts them, and would start the launcher with these arguments; `make fresh` runs them for real."""
    (plain, with_corpus) = [command for command in COMMANDS if command.startswith("make ")]
    for command, expected in ((plain, "--minutes 3"), (with_corpus, "--corpus names.txt; else set --; fi")):
        planned = subprocess.run(
            [*command.split(), "--dry-run", "PYTHON=python3"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert "-m service" in planned.stdout
        assert expected in planned.stdout


@pytest.mark.usefixtures("native_code")
def test_the_curl_commands(folder: tuple[Path, Service]) -> None:
    """A text, a stream and a score."""
    text, stream, score = (run(command, *folder) for command in COMMANDS if command.startswith("curl "))
    assert '"session_id"' in text
    assert stream.startswith("event: start")
    assert stream.count("event: done") == 1
    assert '"bits_per_character"' in score


@pytest.mark.usefixtures("native_code")
def test_the_commands_at_a_terminal(folder: tuple[Path, Service]) -> None:
    """In the README's order: the model that was trained is the one that the next ones use."""
    trained, items, score, info = (run(command, *folder) for command in COMMANDS if command.startswith(".venv"))
    assert "one a line" in trained
    assert len(set(items.split())) == 20
    assert "bits per item" in score
    assert "fingerprint" in info
    assert re.search("^corpus +names, sha256", info, re.M)  # the checkpoint knows what it was trained on
