"""Run folders of the first release of the format, whose fields had other names, are read and resumed.

The folders in tests/fixtures/run_format_1 were written by that release: `steps` was killed at a validation at step 40
of 60, `minutes` was interrupted at its second of four validations. The text and the shape are those below.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints.file_format import load, read_info
from model.cli import main
from model.config import ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError
from model.evaluation.validation_sample import Validation
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.run_folder import RunFolder
from model.training.schedule import BudgetDecision
from tests.model.texts import words
from tests.servers import ROOT

FIXTURES = ROOT / "tests" / "fixtures" / "run_format_1"
STEPS = TrainConfig(steps=60, batch_size=4, seq_length=16, lr=2e-2, dropout=0.1, validations=3, seed=3)
MINUTES = TrainConfig(minutes=0.02, batch_size=4, seq_length=16, lr=2e-2, validations=4, seed=3)
LOSS_AT_THE_END = 1.6800  # of `steps`, resumed by the release that wrote it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES, tmp_path / "old")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_text(words(400), STEPS)


def model(corpus: Corpus) -> ModelConfig:
    return ModelConfig(len(corpus.vocab), n_hidden=8, n_embed=4)


def test_settings_metrics_and_budget_are_read_by_their_new_names(folder: Path) -> None:
    """Every field that was renamed is there under its new name and under no other."""
    run = RunFolder(folder / "steps" / "run")
    settings = run.settings()
    assert settings["n_shards"] == 1
    assert settings["metadata"] == {"corpus": None, "checkpoint_folder": "data/checkpoints"}
    assert not {"parts", "about", "format"} & settings.keys()
    validations = run.validations()
    assert [v.step for v in validations] == [20, 40]
    assert validations[1] == Validation(40, validations[1].elapsed_s, 2.4301962852478027, 1.8194610939469449, True)
    assert all("best" not in line for line in run.metrics())
    decisions = RunFolder(folder / "minutes" / "run").read_budget()
    assert [d.step for d in decisions] == sorted({d.step for d in decisions})
    assert all(isinstance(d, BudgetDecision) for d in decisions)
    assert 0.25 <= decisions[1].fraction < 0.3
    assert decisions[-1].total_steps > decisions[-1].step


def test_a_killed_run_is_resumed(folder: Path, corpus: Corpus) -> None:
    """It ends with the losses that the release which wrote it ends with, and deletes the superseded checkpoint."""
    superseded = folder / "steps" / "val2.2803-step000020.safetensors"
    superseded.touch()
    run = folder / "steps" / "run"
    before = RunFolder(run).validations()
    path = fit(corpus, model(corpus), STEPS, folder / "steps", run=run, resume=True)
    assert load(path).step == 60
    assert load(path).val_loss == pytest.approx(LOSS_AT_THE_END, abs=1e-3)
    assert RunFolder(run).validations()[:2] == before
    assert not superseded.exists()
    assert [p.name for p in (folder / "steps").glob("*.safetensors")] == [path.name]


def test_an_interrupted_run_in_minutes_is_resumed(folder: Path, corpus: Corpus) -> None:
    """The recorded decisions hold, and the remaining validations are made."""
    run = folder / "minutes" / "run"
    decisions = RunFolder(run).read_budget()
    fit(corpus, model(corpus), MINUTES, folder / "minutes", run=run, resume=True)
    assert RunFolder(run).read_budget()[: len(decisions)] == decisions
    assert len(RunFolder(run).validations()) == 4


def test_other_settings_and_damage_are_refused(folder: Path, corpus: Corpus) -> None:
    """An old run is checked like a new one."""
    run = folder / "steps" / "run"
    with pytest.raises(
        ConfigError, match=r"cannot be resumed with other settings: dropout is 0\.1 in the run, 0\.3 now"
    ):
        fit(corpus, model(corpus), replace(STEPS, dropout=0.3), folder / "steps", run=run, resume=True)
    settings = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**settings, "format": "longhand-run-0"}))
    with pytest.raises(CheckpointError, match="format is 'longhand-run-0', expected 'longhand-run-1'"):
        fit(corpus, model(corpus), STEPS, folder / "steps", run=run, resume=True)


def test_an_old_run_is_plotted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plot` draws its curves."""
    assert main(["plot", str(folder / "minutes" / "run")]) == 0
    assert (folder / "minutes" / "run" / "curves.svg").read_text().count("validation (stateful)")
    assert "curves.svg" in capsys.readouterr().out


def test_an_old_checkpoint_names_its_protocol(folder: Path) -> None:
    """The letter in its metadata is read as the protocol's name; weights and self-test are read as ever."""
    (path,) = (folder / "steps").glob("*.safetensors")
    assert read_info(path).run["val_protocol"] == "b"
    assert read_info(path).as_dict()["val_protocol"] == "stateful"
    assert torch.isfinite(load(path).weights["head.weight"]).all()
