"""fit(): a corpus in, the checkpoint with the best validation loss out. What the trainer job calls.

Stateful truncated backpropagation: the text is B contiguous streams, the state is carried from window to window and
its history cut between them. The rate rises, then falls to zero with the budget: most of what a run gains, it gains
while the rate falls. What is kept is the running mean of the weights, and validation decides which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.errors import TrainingError
from model.evaluation.protocols import look
from model.stepper.generate import write
from model.stepper.reference import ReferenceStepper
from model.text.corpus import Corpus, Streams
from model.training.checkpointer import Checkpointer, RunState, remove
from model.training.cuda_graph import CudaGraphLearner
from model.training.distributed import Distributed
from model.training.learner import Learner, workers_that_fit
from model.training.progress import Progress, Watch
from model.training.run_folder import RunFolder
from model.training.schedule import CALIBRATION, Budget, learning_rate
from model.training.warm_start import take_over

__all__ = ["Progress", "Watch", "fit"]

_REPORT_STEPS = 20
_POINT_S = 60.0  # a resume point at least this often, besides those at each look


def fit(
    corpus: Corpus,
    model: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    device: str = "cpu",
    watch: Watch = lambda progress: None,
    run: Path | None = None,
    resume: bool = False,
    warm_start: Checkpoint | None = None,
    sample_chars: int = 0,
    ranks: Distributed | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Train, and return the path of the best-validation checkpoint in `folder`.

    Each look at the validation part that is better than those before leaves a checkpoint, and removes the one that it
    beats (unless that is promoted); the last is measured on the whole part. Nothing is promoted. An interrupt, also
    one that `watch` raises, ends the run early and keeps the best so far.

    `run` is a folder for metrics and for the point from which `resume` goes on: on a CPU with the very losses of the
    run that was not stopped. `warm_start` gives the weights to begin with; characters that both vocabularies have keep
    theirs. `about` is kept in run.json for whoever resumes: where the text lies, say. Distributed other than 0 return
    `folder`. Raised: TrainingError when the loss is not a number, StorageError when the disk refuses,
    CheckpointError when a file is damaged, ConfigError for settings that cannot be, also those that are not the
    run's own.
    """
    record = RunFolder(run) if run is not None else None
    trainer = _Trainer(
        corpus, model, config, folder, device, watch, record, resume, sample_chars, ranks or Distributed()
    )
    trainer.begin(warm_start, dict(about or {}))
    return trainer.train()


class _Trainer:
    """What stays the same while a run goes on; `state` is what does not."""

    def __init__(
        self,
        corpus: Corpus,
        model: ModelConfig,
        config: TrainConfig,
        folder: Path,
        device: str,
        watch: Watch,
        record: RunFolder | None,
        resume: bool,
        sample_chars: int,
        ranks: Distributed,
    ) -> None:
        self.corpus, self.config, self.folder, self.device, self.ranks = corpus, config, folder, device, ranks
        self.watch = watch if ranks.leads else lambda progress: None
        self.sample_chars = sample_chars
        self.record, self.resume = record, resume and record is not None
        n_workers, native = self._division()
        kind = CudaGraphLearner if device.startswith("cuda") and ranks.world == 1 else Learner
        learner = kind(model, config, device, ranks, n_workers, native)
        self.state = RunState(learner, Budget(config, len(corpus.train)), torch.tensor(math.nan, device=device))
        self.keeper = Checkpointer(self.state, corpus, config, folder, self.record, ranks)
        self.streams = Streams(corpus.train, config.batch_size, config.seq_length, device)
        self.settings: dict[str, Any] = {
            "model": asdict(model),
            "train": config.as_dict(),
            "corpus_sha256": corpus.sha256,
            "device": device.split(":")[0],
            "parts": n_workers * ranks.world,
            "native": learner.native if native is None else native,
        }

    def _division(self) -> tuple[int, bool | None]:
        """Threads, and whether layers are native. As fits this machine; a resumed run keeps its own, since another
        way adds up in another order."""
        if not self.resume:
            return workers_that_fit(self.config, self.device, self.ranks.world), None
        assert self.record is not None
        begun = self.record.settings()
        return max(1, int(begun.get("parts", 1)) // self.ranks.world), bool(begun["native"])

    def begin(self, warm_start: Checkpoint | None, about: dict[str, Any]) -> None:
        """Make the run's folder, or take up what it holds."""
        if warm_start is not None:
            take_over(warm_start, self.state.learner, self.corpus.vocab)
        if self.record is None:
            return
        if not self.resume:
            if self.ranks.leads:
                self.record.begin({**self.settings, "about": about})
            return
        self.record.check_same(self.settings)
        point = self.record.point()
        if point is None:  # killed before its first point: there is nothing but the settings
            self.record.forget_after(-1)
            return
        self.keeper.restore(*point)
        if self.ranks.leads:
            self.record.forget_after(self.state.step)

    def train(self) -> Path:
        s = self.state
        try:
            with s.learner.working():
                self._loop()
        except KeyboardInterrupt:
            if s.between_steps and self.ranks.world == 1:
                self.keeper.write_point()
            if s.best_path is None or self.ranks.world > 1:
                raise
        if s.best_path is None and self.ranks.leads:
            self.watch(self._look()[0])
        return self.keeper.measure_whole()

    def _loop(self) -> None:
        s, c = self.state, self.config
        while not (s.budget.total and s.step >= s.budget.total):
            elapsed = self._agreed_elapsed()
            if not s.budget.total and elapsed > CALIBRATION * c.minutes * 60 and s.step >= s.sized[0] + 3:
                self._size(elapsed)
                self.keeper.write_point()
                continue
            done = s.budget.done(s.step + 1, elapsed) if s.budget.total else elapsed / (c.minutes * 60) + 1e-3
            s.lr = learning_rate(c, min(1.0, done))
            s.between_steps = False
            nats = s.learner.step(self.streams, s.lr)
            s.mean_loss = nats if s.step == 1 else s.mean_loss.lerp(nats, 0.02)
            s.between_steps = True
            if s.budget.due(s.step):
                if self._look_and_decide():
                    return
            elif s.step % _REPORT_STEPS == 0 or time.monotonic() - s.reported > 1:
                self._report()
            elif self.device == "cpu":  # there it costs nothing to look at once
                self._check_finite()

    def _agreed_elapsed(self) -> float:
        """Seconds so far: those of rank 0 while they decide anything."""
        if self.state.budget.total:
            return self.state.elapsed_s
        (milliseconds,) = self.ranks.agreed(round(self.state.elapsed_s * 1000))
        return milliseconds / 1000

    def _size(self, elapsed_s: float) -> None:
        """Size what is left of a budget in minutes by the speed since the last time."""
        s = self.state
        step, at = s.sized
        if s.step > step and s.budget.decide(s.step, elapsed_s, max(1e-6, (elapsed_s - at) / (s.step - step))):
            s.sized = (s.step, elapsed_s)
            if self.record is not None and self.ranks.leads:
                self.record.write_budget(s.budget.decisions)

    def _look_and_decide(self) -> bool:
        """A look at the validation part, and what follows from it; says whether the run is to end.

        The watcher is told last: when it interrupts, all that the look led to is on the disk.
        """
        s, c = self.state, self.config
        self._check_finite()
        progress, superseded = self._look() if self.ranks.leads else (None, None)
        s.since_best = self.ranks.agreed(s.since_best)[0]
        (milliseconds,) = self.ranks.agreed(round(s.elapsed_s * 1000))
        self._size(milliseconds / 1000)
        self.keeper.write_point(superseded)
        remove(superseded)
        if progress is not None:
            self.watch(progress)
        return bool(c.patience) and s.since_best >= c.patience

    def _check_finite(self) -> None:
        s = self.state
        value = float(s.mean_loss)
        if not math.isfinite(value):
            kept = f"the best so far is {s.best_path}" if s.best_path else "nothing was kept yet"
            raise TrainingError(
                f"step {s.step}: the loss is {value}; try a smaller lr (now {self.config.lr:g}) or a smaller clip "
                f"(now {self.config.clip:g}); {kept}"
            )

    def _look(self) -> tuple[Progress, Path | None]:
        """Measure, keep the best, log; returns what there is to say, and the superseded checkpoint, if it may go."""
        s, c = self.state, self.config
        trained = s.budget.total * c.batch_size * c.seq_length
        characters = max(16384, int(0.06 * trained / c.validations))  # all looks cost about a fiftieth of the run
        with s.learner.all_cores():
            val_loss = look(s.learner.average, self.corpus.val, characters)
        s.since_best += 1
        superseded = None
        if val_loss < s.best:
            superseded = self.keeper.keep(val_loss, min(characters, len(self.corpus.val) - 1))
        return self._log(val_loss, self._sample()), superseded

    def _sample(self) -> str | None:
        if not self.sample_chars:
            return None
        stepper = ReferenceStepper(self.state.learner.average, n_slots=1, device=self.device)
        return "".join(write(stepper, self.corpus.vocab, "", self.sample_chars, seed=self.config.seed))

    def _log(self, val_loss: float | None, sample: str | None) -> Progress:
        progress = self.state.progress(self.config, len(self.corpus.train), val_loss, sample)
        if self.record is not None and self.ranks.leads:
            self.record.log(progress.line())
        self.state.reported = time.monotonic()
        return progress

    def _report(self) -> None:
        """Say how things stand between looks, and keep a point now and then."""
        self._check_finite()
        s = self.state
        progress = self._log(None, None)
        if s.budget.total and progress.elapsed_s - s.pointed > _POINT_S and self.ranks.world == 1:
            self.keeper.write_point()
        self.watch(progress)
