"""fit(): a corpus in, the checkpoint with the best validation loss out. What the trainer job calls.

Stateful truncated backpropagation: the text is B contiguous streams, the state is carried from window to window and
its history cut between them. The rate rises, then falls to zero with the budget: most of what a run gains, it gains
while the rate falls. Validation decides which weights are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model.checkpoint import Checkpoint, load
from model.config import ModelConfig, TrainConfig
from model.corpus import Corpus, windows
from model.errors import TrainingError
from model.evaluate import look, loss
from model.network import CharRNN, State, detach
from model.self_test import with_self_test

_CALIBRATION = 0.05  # the part of a budget in minutes after which its number of steps is fixed


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run says of itself, after some steps and after each look at the validation part."""

    step: int
    total_steps: int  # an estimate until the budget has been sized
    train_loss: float  # nats per character, a running mean
    val_loss: float | None  # nats per character, protocol (b) on a sample; None between looks
    best: float | None
    lr: float
    chars_per_s: float
    elapsed_s: float


Watch = Callable[[Progress], None]


@dataclass(slots=True)
class _Run:
    """All that changes while a run goes on."""

    network: CharRNN
    optimizer: torch.optim.Optimizer
    state: State
    step: int = 0
    total_steps: int = 0
    train_loss: float = math.nan
    best: float = math.inf
    best_path: Path | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


def fit(
    corpus: Corpus,
    model: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    device: str = "cpu",
    watch: Watch = lambda progress: None,
) -> Path:
    """Train, and return the path of the best-validation checkpoint in `folder`.

    Each look at the validation part that is better than those before leaves a checkpoint, and removes the one that it
    beats; the last is measured on the whole part. Nothing is promoted. An interrupt ends the run early and keeps the
    best so far. Raised: TrainingError when the loss is not a number, CheckpointError when the disk refuses.
    """
    torch.manual_seed(config.seed)
    network = CharRNN(model, config.dropout).to(device).train()
    run = _Run(network, _optimizer(network, config), network.zero_state(config.batch_size), total_steps=config.steps)
    try:
        for x, y in _epochs(corpus, config):
            if not run.total_steps and run.elapsed_s > _CALIBRATION * config.minutes * 60 and run.step >= 3:
                run.total_steps = math.ceil(run.step * config.minutes * 60 / run.elapsed_s)
            if run.total_steps and run.step >= run.total_steps:
                break
            _step(run, config, torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
            if _due(run.step, run.total_steps, config.validations):
                _look(run, corpus, config, folder, watch)
            elif run.step % 20 == 0:
                watch(_progress(run, config, None))
    except KeyboardInterrupt:
        if run.best_path is None:
            raise
    if run.best_path is None:
        _look(run, corpus, config, folder, watch)
    return _measure_whole(run, corpus, folder)


def _optimizer(network: CharRNN, config: TrainConfig) -> torch.optim.Optimizer:
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    rest = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)


def _epochs(corpus: Corpus, config: TrainConfig) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    while True:
        yield from windows(corpus.train, config.batch_size, config.seq_length)


def _lr(config: TrainConfig, done: float) -> float:
    """The rate when `done` of the budget is spent: a linear rise, then a cosine to zero."""
    if done < config.warmup:
        return config.lr * (done / config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - config.warmup) / (1 - config.warmup)))


def _done(run: _Run, config: TrainConfig) -> float:
    if run.total_steps:
        return min(1.0, (run.step + 1) / run.total_steps)
    return min(1.0, run.elapsed_s / (config.minutes * 60) + 1e-3)


def _step(run: _Run, config: TrainConfig, x: Tensor, y: Tensor) -> None:
    lr = _lr(config, _done(run, config))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    logits, state = run.network(x, detach(run.state))
    nats = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    run.optimizer.zero_grad(set_to_none=True)
    nats.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), config.clip)
    run.optimizer.step()
    run.state = state
    run.step += 1
    value = float(nats.detach())
    if not math.isfinite(value):
        kept = f"the best so far is {run.best_path}" if run.best_path else "nothing was kept yet"
        raise TrainingError(f"step {run.step}: the loss is {value}; try a smaller lr (now {config.lr:g}); {kept}")
    run.train_loss = value if math.isnan(run.train_loss) else 0.98 * run.train_loss + 0.02 * value


def _due(step: int, total: int, validations: int) -> bool:
    """Whether this step is followed by a look: `validations` of them, evenly spaced, the last after the last step."""
    return total > 0 and step * validations // total > (step - 1) * validations // total


def _look(run: _Run, corpus: Corpus, config: TrainConfig, folder: Path, watch: Watch) -> None:
    trained = run.total_steps * config.batch_size * config.seq_length
    characters = max(16384, int(0.25 * trained / config.validations))  # all looks cost less than a tenth of the run
    val_loss = look(run.network, corpus.val, characters)
    if val_loss < run.best:
        _keep(run, corpus, config, folder, val_loss, min(characters, len(corpus.val) - 1))
    watch(_progress(run, config, val_loss))


def _keep(run: _Run, corpus: Corpus, config: TrainConfig, folder: Path, val_loss: float, characters: int) -> None:
    checkpoint = with_self_test(
        Checkpoint(
            config=run.network.config,
            vocab=corpus.vocab,
            weights={name: tensor.detach() for name, tensor in run.network.state_dict().items()},
            val_loss=val_loss,
            val_characters=characters,
            step=run.step,
            train_loss=run.train_loss,
            corpus_sha256=corpus.sha256,
            options=config.as_dict(),
        )
    )
    beaten, run.best, run.best_path = run.best_path, val_loss, checkpoint.save(folder)
    if beaten is not None and beaten != run.best_path:
        beaten.unlink(missing_ok=True)


def _measure_whole(run: _Run, corpus: Corpus, folder: Path) -> Path:
    """Give the best checkpoint the loss of the whole validation part, in its metadata and in its name."""
    assert run.best_path is not None
    best = load(run.best_path)
    if best.val_characters < len(corpus.val) - 1:
        network = best.network().to(next(run.network.parameters()).device)
        whole = replace(best, val_loss=loss(network, corpus.val), val_characters=len(corpus.val) - 1)
        path = whole.save(folder)
        if path != run.best_path:
            run.best_path.unlink(missing_ok=True)
        return path
    return run.best_path


def _progress(run: _Run, config: TrainConfig, val_loss: float | None) -> Progress:
    total = run.total_steps or math.ceil(run.step * config.minutes * 60 / run.elapsed_s)
    characters = run.step * config.batch_size * config.seq_length
    return Progress(
        step=run.step,
        total_steps=total,
        train_loss=run.train_loss,
        val_loss=val_loss,
        best=run.best if math.isfinite(run.best) else None,
        lr=run.optimizer.param_groups[0]["lr"],
        chars_per_s=characters / run.elapsed_s,
        elapsed_s=run.elapsed_s,
    )
