"""What a run leaves behind while it goes on: its best checkpoint, and the point from which it can be resumed.

The order matters, for a kill may come between any two lines: a new best is written, then the point that names it, and
only then is the superseded one removed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints import self_test
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import promoted_path
from model.config import TrainConfig
from model.errors import CheckpointError
from model.evaluation.protocols import look
from model.text.corpus import Corpus
from model.training.distributed import Distributed
from model.training.learner import Learner
from model.training.progress import Progress
from model.training.run_folder import RunFolder
from model.training.schedule import Budget

MOST_CHARACTERS = 1_000_000
"""Of the validation part of a large text so many are read, evenly placed: a tenth of a gigabyte would take an hour."""


@dataclass(slots=True)
class RunState:
    """All that changes while a run goes on, beside the learner."""

    learner: Learner
    budget: Budget
    mean_loss: Tensor  # a scalar on the device
    lr: float = 0.0
    best: float = math.inf
    best_path: Path | None = None
    since_best: int = 0
    between_steps: bool = True  # no step is half made
    elapsed_before_s: float = 0.0
    started: float = field(default_factory=time.monotonic)
    sized: tuple[int, float] = (0, 0.0)  # step and time of the last look at the speed
    reported: float = 0.0
    pointed: float = 0.0

    @property
    def step(self) -> int:
        return self.learner.step_count

    @property
    def elapsed_s(self) -> float:
        return self.elapsed_before_s + time.monotonic() - self.started

    def progress(self, config: TrainConfig, n_train: int, val_loss: float | None, sample: str | None) -> Progress:
        """How things stand; `n_train` is the training part's characters."""
        characters, elapsed = self.step * config.batch_size * config.seq_length, self.elapsed_s
        return Progress(
            step=self.step,
            total_steps=self.budget.total or math.ceil(self.step * config.minutes * 60 / elapsed),
            train_loss=float(self.mean_loss),
            val_loss=val_loss,
            best=self.best if math.isfinite(self.best) else None,
            lr=self.lr,
            chars_per_s=characters / elapsed,
            elapsed_s=elapsed,
            best_path=self.best_path,
            sample=sample,
            epochs=characters / n_train,
        )


class Checkpointer:
    """Writes and reads what a run leaves behind. Rank 0's files; all ranks call it at the same steps."""

    def __init__(
        self,
        state: RunState,
        corpus: Corpus,
        config: TrainConfig,
        folder: Path,
        run: RunFolder | None,
        ranks: Distributed,
    ) -> None:
        self._state, self._corpus, self._config = state, corpus, config
        self._folder, self._run, self._ranks = folder, run, ranks
        self._recording = bool(ranks.agreed(int(run is not None))[0])  # all give their parts to rank 0's file

    def keep(self, val_loss: float, characters: int) -> Path | None:
        """Save the running mean as the best so far; returns the checkpoint that may go once a point names this one."""
        s = self._state
        checkpoint = Checkpoint(
            config=s.learner.network.config,
            vocab=self._corpus.vocab,
            weights={name: tensor.detach().cpu() for name, tensor in s.learner.average.state_dict().items()},
            val_loss=val_loss,
            val_characters=characters,
            step=s.step,
            train_loss=float(s.mean_loss),
            corpus_sha256=self._corpus.sha256,
            options=self._config.as_dict(),
        )
        path = self_test.record(checkpoint).save(self._folder)
        superseded = self._removable(s.best_path, path)
        s.best, s.best_path, s.since_best = val_loss, path, 0
        return superseded

    def write_point(self, superseded: Path | None = None) -> None:
        """Keep all that the next step depends on. All ranks come here at the same step.

        `superseded` is what is to be removed next: a run that is killed before that is done does it when it goes on.
        """
        s = self._state
        if not self._recording:
            return
        tensors = s.learner.tensors()
        s.pointed = s.elapsed_s
        if self._run is not None and self._ranks.leads:
            values = {
                "step": s.step,
                "best": s.best if math.isfinite(s.best) else None,
                "best_name": s.best_path.name if s.best_path else None,
                "beaten_name": superseded.name if superseded else None,
                "since_best": s.since_best,
                "elapsed_s": s.elapsed_s,
            }
            self._run.write_point({**tensors, "mean_loss": s.mean_loss}, values)

    def measure_whole(self) -> Path:
        """Give the best checkpoint the loss of the whole validation part, in its metadata and in its name.

        What counts as best while the run goes on stays the loss of the looks, so that a run that was interrupted here
        and is resumed compares like with like.
        """
        s, superseded = self._state, None
        if self._ranks.leads:
            assert s.best_path is not None
            best, characters = load(s.best_path), min(MOST_CHARACTERS, len(self._corpus.val) - 1)
            if best.val_characters < characters:
                network = best.network().to(s.mean_loss.device)
                val_loss = look(network, self._corpus.val, characters)
                path = replace(best, val_loss=val_loss, val_characters=characters).save(self._folder)
                superseded, s.best_path = self._removable(s.best_path, path), path
        if s.between_steps:
            self.write_point(superseded)
            remove(superseded)
        return s.best_path or self._folder

    def _removable(self, superseded: Path | None, by: Path | None) -> Path | None:
        """A superseded checkpoint, unless somebody has promoted it."""
        return None if superseded in (None, by, promoted_path(self._folder)) else superseded

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Become the run whose point this is. Raised: CheckpointError when it does not fit."""
        assert self._run is not None
        s = self._state
        try:
            s.learner.load(tensors, values["step"])
            s.mean_loss = tensors["mean_loss"].to(s.mean_loss.device)
            s.budget = Budget(self._config, len(self._corpus.train), self._run.budget())
            s.budget.advance(s.step)
            s.best, s.since_best, s.elapsed_before_s = values["best"], values["since_best"], values["elapsed_s"]
            s.best_path = self._folder / values["best_name"] if values["best_name"] else None
        except (KeyError, RuntimeError) as e:
            raise CheckpointError(f"run {self._run.path}: its resume point does not fit its settings ({e})") from e
        s.best = math.inf if s.best is None else s.best
        s.sized = (s.step, s.elapsed_s)
        if self._ranks.leads and values.get("beaten_name"):
            remove(self._removable(self._folder / values["beaten_name"], s.best_path))


def remove(superseded: Path | None) -> None:
    """Delete a checkpoint that nothing names any more."""
    if superseded is not None:
        superseded.unlink(missing_ok=True)
