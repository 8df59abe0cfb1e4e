"""Training learns, validation decides, and the numbers mean what they are called."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, TrainingError
from model.evaluation import protocols
from model.network.char_rnn import CharRNN
from model.stepper.reference import ReferenceStepper
from model.text.corpus import Corpus
from model.training.loop import Progress, fit
from tests.model.texts import words

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


def test_the_best_validation_is_what_is_kept(tmp_path: Path, corpus: Corpus) -> None:
    """Only the best checkpoint stays, with the loss of its weights on the whole validation part in its name."""
    seen: list[Progress] = []
    path = fit(corpus, model(corpus), replace(CONFIG, lr=0.3, clip=100.0), tmp_path, watch=seen.append)
    looks = [p for p in seen if p.val_loss is not None]
    assert len(looks) == 5
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    kept = load(path)
    best = min(looks, key=lambda p: p.val_loss or 0)
    assert kept.step == best.step
    assert kept.val_characters == len(corpus.val) - 1
    assert kept.val_loss == pytest.approx(protocols.loss(kept.network(), corpus.val), abs=1e-6)
    assert path.name == f"val{kept.val_loss:.4f}-step{kept.step:06d}.safetensors"


def test_the_same_run_gives_the_same_model(tmp_path: Path, corpus: Corpus) -> None:
    """A budget in steps and a seed: bitwise the same weights."""
    config = replace(CONFIG, steps=40, dropout=0.2)
    prints = {load(fit(corpus, model(corpus, n_layers=2), config, tmp_path / str(i))).fingerprint for i in range(2)}
    assert len(prints) == 1


def test_the_rate_rises_and_ends_at_zero(tmp_path: Path, corpus: Corpus) -> None:
    """A linear rise to lr in the first part of the budget, then a cosine to zero."""
    seen: list[Progress] = []
    fit(corpus, model(corpus), replace(CONFIG, warmup=0.2, validations=50), tmp_path, watch=seen.append)
    rates = [p.lr for p in seen]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(CONFIG.lr, rel=0.02)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_budget_in_minutes_ends(tmp_path: Path, corpus: Corpus) -> None:
    """A run of a twentieth of a minute makes its steps and all its looks."""
    seen: list[Progress] = []
    path = fit(corpus, model(corpus), replace(CONFIG, steps=0, minutes=0.05), tmp_path, watch=seen.append)
    assert sum(p.val_loss is not None for p in seen) == 5
    assert seen[-1].step == seen[-1].total_steps
    assert load(path).step > 0


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says at which step and what to try, and keeps the best so far."""
    whole = F.cross_entropy
    steps = iter(range(10**6))

    def poisoned(*args: torch.Tensor, **kw: str) -> torch.Tensor:
        return whole(*args, **kw) * (torch.nan if torch.is_grad_enabled() and next(steps) == 100 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr("torch.nn.functional.cross_entropy", poisoned)
    with pytest.raises(TrainingError, match=r"step 101: the loss is nan; try a smaller lr .* the best so far is"):
        fit(corpus, model(corpus), CONFIG, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert load(kept).step == 90


def test_an_interrupt_keeps_the_best_so_far(tmp_path: Path, corpus: Corpus) -> None:
    """Ctrl-C after a look: the run ends with a checkpoint."""

    def watch(progress: Progress) -> None:
        if progress.step == 90:
            raise KeyboardInterrupt

    assert load(fit(corpus, model(corpus), CONFIG, tmp_path, watch=watch)).step == 90


def test_protocol_b_is_one_pass(corpus: Corpus) -> None:
    """Read as spans side by side it is, within 0.0005 nats, the plain pass: one state, every character."""
    torch.manual_seed(0)
    network = CharRNN(model(corpus, n_layers=2)).eval()
    network.head.weight.data.mul_(5)
    ids = torch.from_numpy(corpus.train[:20000].astype(np.int64))
    with torch.inference_mode():
        logits, _ = network(ids[None, :-1], network.zero_state(1))
        plain = float(F.cross_entropy(logits[0], ids[1:]))
    assert protocols.loss(network, corpus.train[:20000]) == pytest.approx(plain, abs=5e-4)


@pytest.mark.parametrize("n_slots", [1, 5, 64])
def test_a_stepper_has_the_loss_of_its_network(corpus: Corpus, n_slots: int) -> None:
    """Protocol (b) by a stepper, whatever it held before, is the network's."""
    torch.manual_seed(0)
    network = CharRNN(model(corpus)).eval()
    network.head.weight.data.mul_(5)
    stepper, ids = ReferenceStepper(network, n_slots), corpus.train[: min(9000, 3000 * n_slots)]
    stepper.write(0, np.ones((2, 1, network.config.n_hidden), np.float32))
    found = protocols.loss_as_served(stepper, ids)
    assert found == pytest.approx(protocols.loss(network, ids), abs=5e-4)


def test_protocol_a_starts_each_crop_anew(corpus: Corpus) -> None:
    """Crops of 256 from the zero state, each character once."""
    torch.manual_seed(0)
    network = CharRNN(model(corpus)).eval()
    ids = torch.from_numpy(corpus.train[: 256 * 5 + 1].astype(np.int64))
    with torch.inference_mode():
        each = [
            float(F.cross_entropy(network(ids[None, i : i + 256], network.zero_state(1))[0][0], ids[i + 1 : i + 257]))
            for i in range(0, 256 * 5, 256)
        ]
    assert protocols.loss(network, corpus.train[: 256 * 5 + 1], "a") == pytest.approx(np.mean(each), abs=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("lr", 0.0), ("lr", math.nan), ("lr", "fast"), ("dropout", 1.0), ("batch_size", 0), ("batch_size", 2.5)],
        *[("seed", True), ("val_fraction", 0.0), ("minutes", math.inf), ("clip", -1.0)],
    ],
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    """Field, value and range."""
    with pytest.raises(ConfigError, match=rf"{field}: got {value!r}, expected a .*number"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_unknown_settings_are_named() -> None:
    """A setting that does not exist, and a cell that does not."""
    with pytest.raises(ConfigError, match=r"learning_rate: not a training setting, expected one of .*lr"):
        TrainConfig.from_dict({"learning_rate": 1})
    with pytest.raises(ConfigError, match="cell: got 'transformer', expected one of lstm, gru, rnn"):
        ModelConfig(10, cell="transformer")  # type: ignore[arg-type]


def test_the_parameters_are_counted(corpus: Corpus) -> None:
    """n_parameters is the number of trained numbers."""
    for cell in ("lstm", "gru", "rnn"):
        for n_layers in (1, 3):
            config = model(corpus, cell, n_layers=n_layers)
            assert config.n_parameters == sum(p.numel() for p in CharRNN(config).parameters())
