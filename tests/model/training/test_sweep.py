"""Sweeps: the best validation wins, studies are shared, no settings are tried twice."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.cli import main
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, TrainingError
from model.text.corpus import Corpus
from model.training.sweep import Sweep
from tests.model.texts import words
from tests.servers import ROOT, RedisServer

SIZES = ["--steps", "12", "--batch-size", "4", "--seq-length", "8", "--validations", "4"]
CONFIG = TrainConfig(steps=12, batch_size=4, seq_length=8, validations=4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(words(1000))
    return file


def test_the_best_validation_is_promoted(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The leaderboard's first row is what `info` shows; the same name continues the study."""
    out = tmp_path / "models"
    command = ["sweep", str(text), "--out", str(out), *SIZES, "--minutes", "5"]
    assert main([*command, "--runs", "3"]) == 0
    output = capsys.readouterr().out
    rows = [line for line in output.split("leaderboard")[1].splitlines() if line.startswith("run ")]
    assert len(rows) == 3
    path = promoted_path(out)
    assert path is not None
    assert f"{load(path).val_loss:.4f} nats" in rows[0]
    assert f"n_hidden {load(path).config.n_hidden} " in rows[0]
    losses = [float(row.split()[2]) for row in rows if "pruned" not in row]
    assert losses == sorted(losses)
    assert main([*command, "--runs", "1"]) == 0
    assert capsys.readouterr().out.split("leaderboard")[1].count("\nrun ") == 4
    assert main(["info", "--store", str(out)]) == 0


def test_the_first_run_has_the_requested_settings(tmp_path: Path, text: Path) -> None:
    """The first run has the settings that were given, where the space has them: a sweep ends no worse than they do."""
    corpus = Corpus.from_file(text, CONFIG)
    config = replace(CONFIG, lr=4.5e-3, dropout=0.15)
    for name, hidden, expected in (("inside", 192, 192), ("outside", 1000, 512)):
        sweep = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=hidden), config, tmp_path, study=name)
        sweep.run(2, 5)
        first = next(row for row in sweep.leaderboard() if row.number == 0)
        requested = {"n_hidden": expected, "n_layers": 1, "dropout": 0.15, "weight_drop": 0.0, "lr": 4.5e-3}
        assert first.settings == requested
        again = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=128), config, tmp_path, study=name)
        again.run(1, 5)
        assert len(again.leaderboard()) == 3


def test_two_processes_share_a_study_and_repeat_nothing(
    tmp_path: Path, text: Path, redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through Redis two trainers add to one study at the same time; no settings are tried twice."""
    shared = ["--storage", redis_server.url, "--study", "shared", "--out", str(tmp_path / "models")]
    command = [sys.executable, "-m", "model", "sweep", str(text), *SIZES, *shared, "--minutes", "5", "--runs", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    output = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab))
    sweep = Sweep(corpus, model, CONFIG, tmp_path / "models", study="shared", storage=redis_server.url)
    rows = sweep.leaderboard()
    assert len(rows) == 6
    assert len({tuple(sorted(row.settings.items())) for row in rows}) == 6
    own = [
        {line.split()[1] for line in s.split("leaderboard")[0].splitlines() if line.startswith("run ")} for s in output
    ]
    assert not own[0] & own[1]


def test_equal_settings_are_not_run_twice(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial with the settings of another one is not run: another one is requested."""
    corpus = Corpus.from_file(text, CONFIG)
    rates = iter([0.002, 0.002, 0.003])

    monkeypatch.setattr("model.training.sweep._suggest", lambda trial: trial.suggest_float("lr", (r := next(rates)), r))
    monkeypatch.setattr("model.training.sweep._initial_settings", lambda model, config: {})
    sweep = Sweep(corpus, ModelConfig(len(corpus.vocab), n_hidden=8), CONFIG, tmp_path)
    sweep.run(2, 5)
    assert sorted(row.settings["lr"] for row in sweep.leaderboard()) == [0.002, 0.003]


def test_a_study_is_about_one_text(tmp_path: Path, text: Path) -> None:
    """Another text under the same name is refused; so is a storage that is not there, and a sweep with no run."""
    corpus = Corpus.from_file(text, CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=8)
    sweep = Sweep(corpus, model, CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="no finished run yet"):
        sweep.run(3, 0.0)
    with pytest.raises(ConfigError, match="study: 'sweep' is a study of another text"):
        Sweep(Corpus.from_text(words(900), CONFIG), model, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match=r"storage: got 'unix:///nowhere/redis\.sock', which cannot be used"):
        Sweep(corpus, model, CONFIG, tmp_path, storage="unix:///nowhere/redis.sock")
