"""Training learns, validation decides, and the numbers mean what they are called."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.errors import TrainingError
from model.evaluation.protocols import loss
from model.text.corpus import Corpus
from model.training.learner import Learner
from model.training.loop import fit
from model.training.run_folder import Progress, RunFolder
from tests.model.texts import words
from tests.servers import ROOT

CONFIG = TrainConfig(steps=150, batch_size=8, seq_length=32, lr=1e-2, validations=5, seed=3)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_text(words(8000), CONFIG)


def model(corpus: Corpus, cell: str = "lstm", **more: int) -> ModelConfig:
    return ModelConfig(vocab_size=len(corpus.vocab), cell=cell, **{"n_hidden": 32, "n_embed": 16, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_it_learns(tmp_path: Path, corpus: Corpus, cell: str) -> None:
    """Within 0.08 nats of what such a text costs: log 4 a word, so many characters a word."""
    path = fit(corpus, model(corpus, cell), CONFIG, tmp_path)
    per_character = math.log(4) / (sum(map(len, ["tea ", "coffee ", "milk\n", "sugar "])) / 4)
    assert load(path).val_loss < per_character + 0.08


def test_the_weights_of_the_best_validation_are_saved(tmp_path: Path, corpus: Corpus) -> None:
    """Only the best checkpoint stays, with the loss of its weights on the whole validation part in its name."""
    reports: list[Progress] = []
    path = fit(corpus, model(corpus), replace(CONFIG, lr=0.3, clip=100.0), tmp_path, on_progress=reports.append)
    validations = [v for report in reports if (v := report.validation) is not None]
    assert len(validations) == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    saved = load(path)
    best = min(validations, key=lambda v: v.val_loss)
    assert [v for v in validations if v.is_best][-1] == best
    assert saved.step == best.step
    assert saved.val_characters == len(corpus.val) - 1
    assert saved.val_loss == pytest.approx(loss(saved.network(), corpus.val), abs=1e-6)
    assert path.name == f"val{saved.val_loss:.4f}-step{saved.step:06d}.safetensors"


def test_the_same_run_gives_the_same_model(tmp_path: Path, corpus: Corpus) -> None:
    """A budget in steps and a seed: bitwise the same weights."""
    config = replace(CONFIG, steps=40, dropout=0.2)
    prints = {load(fit(corpus, model(corpus, n_layers=2), config, tmp_path / str(i))).fingerprint for i in range(2)}
    assert len(prints) == 1


def test_the_rate_rises_and_ends_at_zero(tmp_path: Path, corpus: Corpus) -> None:
    """A linear rise to lr in the first part of the budget, then a cosine to zero."""
    reports: list[Progress] = []
    fit(corpus, model(corpus), replace(CONFIG, warmup=0.2, validations=50), tmp_path, on_progress=reports.append)
    rates = [p.lr for p in reports]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(CONFIG.lr, rel=0.02)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_budget_in_minutes_ends(tmp_path: Path, corpus: Corpus) -> None:
    """A run of a twentieth of a minute makes its steps and all its validations."""
    reports: list[Progress] = []
    path = fit(corpus, model(corpus), replace(CONFIG, steps=0, minutes=0.05), tmp_path, on_progress=reports.append)
    assert sum(p.val_loss is not None for p in reports) == 5
    assert reports[-1].step == reports[-1].total_steps
    assert load(path).step > 0


def test_a_machine_that_slows_down_does_not_make_a_run_late(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the middle of the budget on each step takes fifteen times as long.

    The next validation is the last one: without a correction before it, the run would take several times its minutes.
    """
    minutes = 0.08
    learn, began = Learner.step, time.monotonic()

    def step(learner: Learner, *args: Any) -> torch.Tensor:
        step_began = time.monotonic()
        result = learn(learner, *args)
        if step_began - began > minutes * 60 / 2:
            time.sleep(14 * (time.monotonic() - step_began))
        return result

    monkeypatch.setattr(Learner, "step", step)
    config = replace(CONFIG, steps=0, minutes=minutes, validations=1)
    path = fit(corpus, model(corpus), config, tmp_path / "checkpoints", run=tmp_path / "run")
    elapsed = time.monotonic() - began
    decisions = RunFolder(tmp_path / "run").read_budget()
    print(f"{elapsed:.1f} s of {minutes * 60:.1f} s, {[d.total_steps for d in decisions]} steps")
    assert len(decisions) > 1
    assert load(path).step == decisions[-1].total_steps
    assert elapsed <= 1.5 * minutes * 60


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the step and what to try; the best checkpoint so far stays."""
    step = Learner.step

    def poisoned(self: Learner, *args: Any) -> torch.Tensor:
        if self.step_count == 100:
            self.network.head.weight.data[0, 0] = torch.nan
        return step(self, *args)

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(
        TrainingError, match=r"step 101: the loss is nan; try a smaller lr .* the best checkpoint so far is"
    ):
        fit(corpus, model(corpus), CONFIG, tmp_path)
    (checkpoint,) = tmp_path.iterdir()
    assert load(checkpoint).step == 90


def test_an_interrupt_keeps_the_best_so_far(tmp_path: Path, corpus: Corpus) -> None:
    """Ctrl-C after a validation: the run ends with a checkpoint."""

    def interrupt(progress: Progress) -> None:
        if progress.step == 90:
            raise KeyboardInterrupt

    assert load(fit(corpus, model(corpus), CONFIG, tmp_path, on_progress=interrupt)).step == 90


WITHOUT_COMPILER = """
import sys
from pathlib import Path
from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.text.corpus import Corpus
from model.training.loop import fit

config = TrainConfig(steps=4, batch_size=4, seq_length=8, validations=1)
corpus = Corpus.from_text("tea and coffee\\n" * 100, config)
load(fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=16), config, Path(sys.argv[1]))).network()
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.usefixtures("native_code")
def test_torchs_compiler_is_not_imported(tmp_path: Path) -> None:
    """Neither to train with native steps nor to load a checkpoint: it takes a second, in each process."""
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
