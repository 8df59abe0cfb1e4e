"""fit(): train a network on a corpus, and return the checkpoint with the best validation loss.

Stateful truncated backpropagation through time: the text is read as B contiguous streams, the hidden state is carried
from window to window and detached between them. The learning rate rises, then decays to zero with the budget; most of
the gain of a run comes while it decays. What is saved is the moving average of the weights, and validation decides
which.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.file_format import Checkpoint
from model.config import Bf16Order, ModelConfig, TrainConfig
from model.errors import TrainingError
from model.evaluation.validation_loss import ValidationLoss, validation_loss
from model.evaluation.validation_sample import MAX_CHARACTERS, sample_size
from model.stepper.generate import write
from model.stepper.reference import ReferenceStepper
from model.text.corpus import Corpus
from model.training.checkpointer import Checkpointer, RunState, delete_superseded
from model.training.cuda_graph import CudaGraphLearner
from model.training.distributed import Distributed
from model.training.learner import Learner, choose_precision, choose_workers
from model.training.run_folder import Progress, ProgressCallback, RunFolder
from model.training.schedule import CALIBRATION, Budget, learning_rate
from model.training.warm_start import load_matching_weights

_REPORT_STEPS = 20
_REPORT_S = 1.0


def fit(
    corpus: Corpus,
    model: ModelConfig,
    config: TrainConfig,
    folder: Path,
    *,
    device: str = "cpu",
    on_progress: ProgressCallback = lambda _progress: None,
    run: Path | None = None,
    resume: bool = False,
    warm_start: Checkpoint | None = None,
    sample_chars: int = 0,
    distributed: Distributed | None = None,
    metadata: Mapping[str, Any] | None = None,
    origin: Mapping[str, str] | None = None,
) -> Path:
    """Train a network, and return the path of its best checkpoint in `folder`.

    Each validation that is better than those before saves a checkpoint, and deletes the superseded one unless it is
    promoted. The final checkpoint is measured on the whole validation part. Nothing is promoted. An interrupt, also a
    KeyboardInterrupt raised by `on_progress`, ends the run early and returns the best checkpoint so far.

    Args:
        corpus: The text, split and encoded.
        model: The shape of the network.
        config: The settings of the training.
        folder: Where checkpoints are saved.
        device: "cpu", "cuda" or one GPU, such as "cuda:0".
        on_progress: Called with a report after some steps and after each validation.
        run: A folder for the run's metrics and resume state; without it the run cannot be resumed.
        resume: Continue the run in `run`; on a CPU with exactly the losses of a run that was not interrupted.
        warm_start: A checkpoint whose weights are used as initial weights; characters of both vocabularies keep theirs.
        sample_chars: How many characters to generate at each validation.
        distributed: This process's place in a torchrun job; ranks other than 0 return `folder`.
        metadata: Stored in run.json, for the program that resumes the run: where the text is, for example.
        origin: The names of the `corpus` and of the `preset`, which the checkpoints keep for people.

    Returns:
        The path of the checkpoint with the best validation loss.

    Raises:
        TrainingError: The loss is not a number.
        StorageError: A file cannot be written.
        CheckpointError: A file of the run to be resumed is damaged.
        ConfigError: The settings cannot be used, or they are not those of the run to be resumed.
    """
    trainer = _Trainer(
        corpus,
        model,
        config,
        folder,
        device=device,
        on_progress=on_progress,
        run_folder=RunFolder(run) if run is not None else None,
        resume=resume,
        sample_chars=sample_chars,
        distributed=distributed or Distributed(),
        origin=origin or {},
    )
    trainer.start(warm_start, dict(metadata or {}))
    return trainer.train()


class _Trainer:
    """One run. Its attributes do not change, except for `state`, which holds all that does."""

    def __init__(
        self,
        corpus: Corpus,
        model: ModelConfig,
        config: TrainConfig,
        folder: Path,
        *,
        device: str,
        on_progress: ProgressCallback,
        run_folder: RunFolder | None,
        resume: bool,
        sample_chars: int,
        distributed: Distributed,
        origin: Mapping[str, str],
    ) -> None:
        self.corpus, self.device, self.distributed = corpus, device, distributed
        self.on_progress = on_progress if distributed.is_main else lambda _progress: None
        self.sample_chars = sample_chars
        self.run_folder, self.resume = run_folder, resume and run_folder is not None
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)  # streams and graphs are those of the current GPU
        self.config = config = self._with_precision(config, model)
        n_workers, native, bf16_order = self._numerics()
        # A graph has fixed shapes; the items of a window have not.
        has_graph = device.startswith("cuda") and distributed.world_size == 1 and corpus.items is None
        kind = CudaGraphLearner if has_graph else Learner
        learner = kind(model, config, device, distributed, n_workers, native, bf16_order)
        learner.average.item_end = corpus.item_end
        self.state = RunState(learner, Budget(config, len(corpus.train)), torch.tensor(math.nan, device=device))
        self.checkpointer = Checkpointer(self.state, corpus, config, folder, run_folder, distributed, origin)
        self.streams = corpus.streams(config, device)
        self.settings: dict[str, Any] = {
            "model": asdict(model),
            "train": config.as_dict(),
            "corpus_sha256": corpus.sha256,
            "device": device.split(":", maxsplit=1)[0],
            "n_shards": n_workers * distributed.world_size,
            "native": learner.native if native is None else native,
            "bf16_order": bf16_order or learner.bf16_order,
        }

    def _with_precision(self, config: TrainConfig, model: ModelConfig) -> TrainConfig:
        """Return the settings with a precision chosen; a resumed run keeps its own."""
        if config.precision != "auto":
            return config
        if not self.resume:
            return replace(config, precision=choose_precision(config, model, self.device))
        assert self.run_folder is not None
        return replace(config, precision=(self.run_folder.settings().get("train") or {}).get("precision", "fp32"))

    def _numerics(self) -> tuple[int, bool | None, Bf16Order | None]:
        """Return the worker threads of each process, whether layers are native, and the order of their bf16 sums.

        A new run uses what fits this machine. A resumed run keeps what it was started with, because another number of
        shards or another implementation adds up in another order.
        """
        if not self.resume:
            return choose_workers(self.config, self.device, self.distributed.world_size), None, None
        assert self.run_folder is not None
        saved = self.run_folder.settings()
        n_workers = max(1, int(saved.get("n_shards", 1)) // self.distributed.world_size)
        return n_workers, bool(saved["native"]), saved["bf16_order"]

    def start(self, warm_start: Checkpoint | None, metadata: dict[str, Any]) -> None:
        """Write the settings of a new run, or restore the state of the run that is resumed."""
        if warm_start is not None:
            load_matching_weights(warm_start, self.state.learner, self.corpus.vocab)
        if self.run_folder is None:
            return
        if not self.resume:
            if self.distributed.is_main:
                self.run_folder.create({**self.settings, "metadata": metadata})
            return
        self.run_folder.check_settings(self.settings)
        resume_state = self.run_folder.read_resume_state()
        if resume_state is None:  # killed before it wrote one: the run begins again
            self.run_folder.truncate_metrics(-1)
            return
        self.checkpointer.restore(*resume_state)
        if self.distributed.is_main:
            self.run_folder.truncate_metrics(self.state.step)

    def train(self) -> Path:
        """Run to the end of the budget, to the last validation that patience allows, or to an interrupt."""
        s = self.state
        try:
            with s.learner.worker_threads():
                self._loop()
        except KeyboardInterrupt:
            if s.is_between_steps and self.distributed.world_size == 1:
                self.checkpointer.write_resume_state()
            if s.best_checkpoint is None or self.distributed.world_size > 1:
                raise
        if s.best_checkpoint is None and self.distributed.is_main:
            self.on_progress(self._validate()[0])
        return self.checkpointer.validate_best()

    def _loop(self) -> None:
        s, c = self.state, self.config
        while not (s.budget.total_steps and s.step >= s.budget.total_steps):
            s.budget.apply_decisions(s.step)
            elapsed = self._elapsed_on_main()
            is_calibrated = elapsed > CALIBRATION * c.minutes * 60 and s.step >= s.speed_since[0] + 3
            if not s.budget.total_steps and is_calibrated:
                self._update_budget(elapsed)
                self.checkpointer.write_resume_state()
                continue
            if s.budget.total_steps:
                fraction = s.budget.fraction_spent(s.step + 1, elapsed)
            else:
                fraction = elapsed / (c.minutes * 60) + 1e-3
            s.lr = learning_rate(c, min(1.0, fraction))
            s.is_between_steps = False
            loss = s.learner.step(self.streams, s.lr)
            s.mean_loss = loss if s.step == 1 else s.mean_loss.lerp(loss, 0.02)
            s.is_between_steps = True
            if s.budget.is_validation_due(s.step):
                if self._validate_and_save():
                    return
            elif s.step % _REPORT_STEPS == 0 or time.monotonic() - s.reported_at > _REPORT_S:
                self._report()
            elif self.device == "cpu":  # on a GPU this would wait for the step
                self._check_finite()

    def _elapsed_on_main(self) -> float:
        """Return the elapsed seconds; rank 0's as long as they decide the length of the run."""
        if self.state.budget.total_steps:
            return self.state.elapsed_s
        (milliseconds,) = self.distributed.broadcast(round(self.state.elapsed_s * 1000))
        return milliseconds / 1000

    def _update_budget(self, elapsed_s: float) -> None:
        """Convert what is left of a budget in minutes to steps, by the speed since the last time."""
        s = self.state
        since_step, since_s = s.speed_since
        if s.step <= since_step:
            return
        step_s = max(1e-6, (elapsed_s - since_s) / (s.step - since_step))
        if s.budget.decide(s.step, elapsed_s, step_s, s.final_s):
            s.speed_since = (s.step, elapsed_s)
            if self.run_folder is not None and self.distributed.is_main:
                self.run_folder.write_budget(s.budget.decisions)

    def _is_late(self) -> bool:
        """Whether the run would end late at its speed since the last decision: a machine can slow down at any time.

        Between validations, several processes do not tell each other the time.
        """
        s = self.state
        since_step, since_s = s.speed_since
        if self.distributed.world_size > 1 or s.step <= since_step:
            return False
        elapsed = s.elapsed_s
        step_s = (elapsed - since_s) / (s.step - since_step)
        return s.budget.is_late(s.step, elapsed, elapsed - since_s, step_s, s.final_s)

    def _validate_and_save(self) -> bool:
        """Validate, save a new best checkpoint, update the budget and write the resume state.

        The callback is called last: when it interrupts the run, everything is on the disk.

        Returns:
            Whether patience is exhausted.
        """
        s, c = self.state, self.config
        self._check_finite()
        progress, superseded = self._validate() if self.distributed.is_main else (None, None)
        s.validations_since_best = self.distributed.broadcast(s.validations_since_best)[0]
        milliseconds, final_ms = self.distributed.broadcast(round(s.elapsed_s * 1000), round(s.final_s * 1000))
        s.final_s = final_ms / 1000
        self._update_budget(milliseconds / 1000)
        self.checkpointer.write_resume_state(superseded)
        delete_superseded(superseded)
        if progress is not None:
            self.on_progress(progress)
        return bool(c.patience) and s.validations_since_best >= c.patience

    def _check_finite(self) -> None:
        s = self.state
        value = float(s.mean_loss)
        if not math.isfinite(value):
            saved = f"the best checkpoint so far is {s.best_checkpoint}" if s.best_checkpoint else "no checkpoint yet"
            raise TrainingError(
                f"step {s.step}: the loss is {value}; try a smaller lr (now {self.config.lr:g}) or a smaller clip "
                f"(now {self.config.clip:g}); {saved}"
            )

    def _validate(self) -> tuple[Progress, Path | None]:
        """Measure the averaged weights, save them if they are the best so far, and write a line of metrics.

        Returns:
            The report, and the superseded checkpoint that is to be deleted.
        """
        s, c = self.state, self.config
        trained = s.budget.total_steps * c.batch_size * c.seq_length
        characters = sample_size(trained, c.validations)
        began = s.elapsed_s
        with s.learner.all_cores():
            val_loss = validation_loss(s.learner.average, self.corpus, characters)
        whole = min(MAX_CHARACTERS, len(self.corpus.val) - 1)
        is_whole = val_loss.characters >= whole
        s.final_s = 0.0 if is_whole else (s.elapsed_s - began) * whole / val_loss.characters
        s.validations_since_best += 1
        superseded = None
        if val_loss.per_character < s.best_val_loss:
            superseded = self.checkpointer.save_best(val_loss)
        return self._log(val_loss, self._sample()), superseded

    def _sample(self) -> str | None:
        if not self.sample_chars:
            return None
        stepper = ReferenceStepper(self.state.learner.average, n_slots=1, device=self.device)
        text = "".join(write(stepper, self.corpus.vocab, "", self.sample_chars, seed=self.config.seed))
        if self.corpus.items is None:
            return text
        whole_items, _, cut_item = text.rpartition(self.corpus.vocab.characters[self.corpus.vocab.start])
        return whole_items or cut_item

    def _log(self, val_loss: ValidationLoss | None, sample: str | None) -> Progress:
        progress = self.state.progress(self.config, len(self.corpus.train), val_loss, sample)
        if self.run_folder is not None and self.distributed.is_main:
            self.run_folder.append_metrics(progress.metrics())
        self.state.reported_at = time.monotonic()
        return progress

    def _report(self) -> None:
        """Report progress between validations, and write a resume state now and then."""
        self._check_finite()
        s = self.state
        progress = self._log(None, None)
        if self._is_late():
            self._update_budget(progress.elapsed_s)
        if s.budget.total_steps and self.checkpointer.is_resume_state_due and self.distributed.world_size == 1:
            self.checkpointer.write_resume_state()
        self.on_progress(progress)
