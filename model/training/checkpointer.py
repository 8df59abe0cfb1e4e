"""What a run writes: its best checkpoint, and the state from which it can be resumed.

The order of writes matters, because a kill may come between any two of them: first the new best checkpoint, then the
resume state that names it, and only then the superseded checkpoint is deleted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints import registry, self_test
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import promoted_path
from model.config import TrainConfig
from model.errors import CheckpointError
from model.evaluation.quantization import int8_cost
from model.evaluation.validation_loss import ValidationLoss, validation_loss
from model.evaluation.validation_sample import MAX_CHARACTERS
from model.text.corpus import Corpus
from model.text.items.record import ItemRecord
from model.training.distributed import Distributed
from model.training.learner import Learner
from model.training.run_folder import Progress, RunFolder
from model.training.schedule import Budget

RESUME_STATE_INTERVAL_S = 60.0
"""A resume state is written at least this often, besides those at each validation."""


@dataclass(slots=True)
class RunState:
    """Everything that changes during a run, beside the learner's own state."""

    learner: Learner
    budget: Budget
    mean_loss: Tensor  # running mean of the training loss, a scalar on the device
    lr: float = 0.0
    best_val_loss: float = math.inf
    best_checkpoint: Path | None = None
    validations_since_best: int = 0
    is_between_steps: bool = True  # False while a step is computed: the tensors are then inconsistent
    elapsed_before_s: float = 0.0  # in the run that was resumed
    started_at: float = field(default_factory=time.monotonic)
    speed_since: tuple[int, float] = (0, 0.0)  # the step and elapsed time from which the speed is measured
    final_s: float = 0.0  # the time that measuring the best checkpoint at the end will take
    reported_at: float = 0.0  # monotonic
    resume_state_written_s: float = 0.0  # elapsed time

    @property
    def step(self) -> int:
        """Steps so far."""
        return self.learner.step_count

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.elapsed_before_s + time.monotonic() - self.started_at

    def progress(
        self, config: TrainConfig, n_train: int, val_loss: ValidationLoss | None, sample: str | None
    ) -> Progress:
        """Return a progress report.

        Args:
            config: The settings of the run.
            n_train: Characters of the training part.
            val_loss: The loss of the validation that the report is about, if it is about one.
            sample: Generated text, if there is one.
        """
        characters, elapsed = self.step * config.batch_size * config.seq_length, self.elapsed_s
        return Progress(
            step=self.step,
            total_steps=self.budget.total_steps or math.ceil(self.step * config.minutes * 60 / elapsed),
            epochs=characters / n_train,
            train_loss=float(self.mean_loss),
            val_loss=val_loss.per_character if val_loss is not None else None,
            best_val_loss=self.best_val_loss if math.isfinite(self.best_val_loss) else None,
            lr=self.lr,
            chars_per_s=characters / elapsed,
            elapsed_s=elapsed,
            best_checkpoint=self.best_checkpoint,
            sample=sample,
            val_loss_per_item=val_loss.per_item if val_loss is not None else None,
        )


class Checkpointer:
    """Writes and reads the files of a run. The files are rank 0's; all ranks call it at the same steps."""

    def __init__(
        self,
        state: RunState,
        corpus: Corpus,
        config: TrainConfig,
        folder: Path,
        run_folder: RunFolder | None,
        distributed: Distributed,
        origin: Mapping[str, str],
    ) -> None:
        """Keep references; nothing is written.

        Args:
            state: The run's state, which `restore` changes.
            corpus: The text.
            config: The settings of the training.
            folder: The folder of checkpoints.
            run_folder: The run's files; None for a run that cannot be resumed, and on ranks other than 0.
            distributed: This process's place in a torchrun job.
            origin: The checkpoints' `corpus` and `preset`.
        """
        self._origin = origin
        self._state, self._corpus, self._config = state, corpus, config
        self._folder, self._run_folder, self._distributed = folder, run_folder, distributed
        self._writes_resume_state = bool(distributed.broadcast(int(run_folder is not None))[0])

    def save_best(self, val_loss: ValidationLoss) -> Path | None:
        """Save the averaged weights as the best checkpoint so far.

        Args:
            val_loss: Their validation loss.

        Returns:
            The superseded checkpoint, to be deleted once a resume state names the new one; None when it stays.
        """
        s = self._state
        checkpoint = Checkpoint(
            config=s.learner.network.config,
            vocab=self._corpus.vocab,
            weights={name: tensor.detach().cpu() for name, tensor in s.learner.average.state_dict().items()},
            val_loss=val_loss.per_character,
            val_characters=val_loss.characters,
            step=s.step,
            train_loss=float(s.mean_loss),
            corpus_sha256=self._corpus.sha256,
            options=self._config.as_dict(),
            items=_item_record(self._corpus, val_loss),
            corpus=self._origin.get("corpus", ""),
            preset=self._origin.get("preset", ""),
        )
        checkpoint = replace(checkpoint, int8_cost=int8_cost(checkpoint.network(), self._corpus.val))
        path = self_test.record(checkpoint).save(self._folder)
        superseded = self._unless_promoted(s.best_checkpoint, path)
        s.best_val_loss, s.best_checkpoint, s.validations_since_best = val_loss.per_character, path, 0
        return superseded

    @property
    def is_resume_state_due(self) -> bool:
        """Whether the last resume state is older than RESUME_STATE_INTERVAL_S."""
        return self._state.elapsed_s - self._state.resume_state_written_s > RESUME_STATE_INTERVAL_S

    def write_resume_state(self, superseded: Path | None = None) -> None:
        """Write everything that the next step depends on. All ranks call this at the same step.

        Args:
            superseded: The checkpoint that is deleted next; a run that is killed before that deletes it when resumed.
        """
        s = self._state
        if not self._writes_resume_state:
            return
        tensors = s.learner.state_tensors()
        s.resume_state_written_s = s.elapsed_s
        if self._run_folder is not None and self._distributed.is_main:
            values = {
                "step": s.step,
                "best_val_loss": s.best_val_loss if math.isfinite(s.best_val_loss) else None,
                "best_checkpoint": s.best_checkpoint.name if s.best_checkpoint else None,
                "superseded_checkpoint": superseded.name if superseded else None,
                "validations_since_best": s.validations_since_best,
                "elapsed_s": s.elapsed_s,
            }
            self._run_folder.write_resume_state({**tensors, "mean_loss": s.mean_loss}, values)

    def validate_best(self) -> Path:
        """Measure the best checkpoint on the whole validation part, and save it again with that loss.

        During the run the losses on samples decide, also after this: a run that was interrupted here and is resumed
        compares losses on samples with losses on samples.

        Returns:
            The checkpoint, with the loss of the whole part in its name; the folder of checkpoints on other ranks.
        """
        s, superseded = self._state, None
        if self._distributed.is_main:
            assert s.best_checkpoint is not None
            best, characters = load(s.best_checkpoint), min(MAX_CHARACTERS, len(self._corpus.val) - 1)
            if best.val_characters < characters:
                measured = validation_loss(best.network().to(s.mean_loss.device), self._corpus)
                best = replace(best, val_loss=measured.per_character, val_characters=measured.characters)
                path = replace(best, items=_item_record(self._corpus, measured)).save(self._folder)
                superseded, s.best_checkpoint = self._unless_promoted(s.best_checkpoint, path), path
        if s.is_between_steps:
            self.write_resume_state(superseded)
            delete_superseded(superseded)
        return s.best_checkpoint or self._folder

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Restore the state of the run from what `RunFolder.read_resume_state` returned.

        Raises:
            CheckpointError: It does not fit the network or the settings.
        """
        assert self._run_folder is not None
        s = self._state
        try:
            s.learner.load_state_tensors(tensors, values["step"])
            s.mean_loss = tensors["mean_loss"].to(s.mean_loss.device)
            s.budget = Budget(self._config, len(self._corpus.train), self._run_folder.read_budget())
            s.budget.apply_decisions(s.step)
            s.best_val_loss = math.inf if values["best_val_loss"] is None else float(values["best_val_loss"])
            s.validations_since_best = int(values["validations_since_best"])
            s.elapsed_before_s = float(values["elapsed_s"])
            s.best_checkpoint = self._named(values["best_checkpoint"])
            superseded = self._named(values.get("superseded_checkpoint"))
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as e:
            problem = f"its resume state does not fit its settings ({e})"
            raise CheckpointError(problem, field=f"run {self._run_folder.path}") from e
        s.speed_since = (s.step, s.elapsed_s)
        if self._distributed.is_main and superseded is not None:
            delete_superseded(self._unless_promoted(superseded, s.best_checkpoint))

    def _named(self, name: object) -> Path | None:
        """The checkpoint that a resume state names, in the folder of this run's checkpoints; None for no name.

        Raises:
            ValueError: It is no name of a checkpoint: to delete it could delete another file.
        """
        if not name:
            return None
        if not isinstance(name, str) or not registry.is_checkpoint_name(name):
            raise ValueError(f"{name!r} is no name of a checkpoint")
        return self._folder / name

    def _unless_promoted(self, superseded: Path | None, best: Path | None) -> Path | None:
        """Return the superseded checkpoint if it may be deleted: it is neither the best one nor promoted."""
        return None if superseded in (None, best, promoted_path(self._folder)) else superseded


def _item_record(corpus: Corpus, val_loss: ValidationLoss) -> ItemRecord | None:
    """Return what the checkpoint of a list records of it; None for a text."""
    items, losses = corpus.items, val_loss.items
    if items is None or losses is None:
        return None
    return items.record.with_validation(losses.per_item, losses.statistics())


def delete_superseded(checkpoint: Path | None) -> None:
    """Delete a superseded checkpoint, if there is one."""
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
