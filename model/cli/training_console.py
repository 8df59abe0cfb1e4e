"""What `train` and `sweep` print: progress, losses, samples and advice during a run, and its result."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from model.checkpoints.file_format import Checkpoint
from model.cli.console import console, progress_bar
from model.config import ModelConfig, TrainConfig
from model.evaluation import advice
from model.evaluation.advice import Advice, TrainingSetup
from model.evaluation.protocols import bits
from model.evaluation.validation_sample import Validation
from model.text.corpus import Corpus
from model.training.run_folder import Progress, ProgressCallback

if TYPE_CHECKING:  # a plain run need not load Optuna
    from model.training.sweep import SweepRun

_WHILE_RUNNING = {"overfitting", "unstable_training"}  # the other rules need the whole curve


@contextmanager
def progress(corpus: Corpus, model: ModelConfig, config: TrainConfig) -> Iterator[ProgressCallback]:
    """Show a progress bar for a run, and print a line for each validation; yields the callback for `fit`."""
    setup = TrainingSetup.of(model, config, corpus)
    _print_setup(corpus, model, setup)
    validations: list[Validation] = []
    printed: set[str] = set()
    with progress_bar("train  ") as bar:
        task = bar.add_task("", total=None, line="")

        def on_progress(report: Progress) -> None:
            bar.update(task, completed=report.step, total=report.total_steps, line=_status(report))
            if report.validation is None:
                return
            _print_validation(report)
            validations.append(report.validation)
            if len(validations) < config.validations:  # after the last one all rules are printed
                applicable = advice.advise_on_losses(setup, validations)
                new = [a for a in applicable if a.rule in _WHILE_RUNNING and a.rule not in printed]
                printed.update(a.rule for a in new)
                _print_advice(new)

        yield on_progress
    _print_advice(advice.advise_on_losses(setup, validations))


def print_notes(corpus: Corpus) -> None:
    """Print what was changed while the text was decoded, and which settings were adapted to it."""
    for note in corpus.notes:
        console.print(f"corpus  note: {note}")


def _print_setup(corpus: Corpus, model: ModelConfig, setup: TrainingSetup) -> None:
    print_notes(corpus)
    test = f", {len(corpus.test):,} more are the test part" if len(corpus.test) else ""
    part = f"the validation part is the last {len(corpus.val):,}{test}"
    if corpus.items is not None:
        items = corpus.items.record
        test = f", {items.n_test:,} are the test part" if items.n_test else ""
        part = (
            f"{items.n_train:,} items are the training part, {items.n_val:,} the validation part{test} (by a hash of "
            "the item); every loss counts an item's end as a character"
        )
    console.print(
        f"corpus  {corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; {part}\n"
        f"model   {model.cell} {model.n_layers} x {model.n_hidden}, {model.n_parameters:,} parameters, "
        f"{model.n_parameters / corpus.n_characters:.2f} for each character"
    )
    _print_advice(advice.advise_on_setup(setup))


def _status(report: Progress) -> str:
    line = f"step {report.step:,}  {report.chars_per_s:,.0f} chars/s  lr {report.lr:.2g}  train {report.train_loss:.3f}"
    if report.best_val_loss is not None:
        line += f"  best val {report.best_val_loss:.3f} nats {bits(report.best_val_loss):.3f} bits"
    return line


def _print_validation(report: Progress) -> None:
    assert report.val_loss is not None
    suffix = " (best)" if report.is_best else ""
    per_item = "" if report.val_loss_per_item is None else f", {bits(report.val_loss_per_item):.2f} bits per item"
    console.print(
        f"        step {report.step:,}: train {report.train_loss:.4f}, validation {report.val_loss:.4f} nats = "
        f"{bits(report.val_loss):.4f} bits per character{per_item}{suffix}, {report.chars_per_s:,.0f} chars/s, "
        f"{report.elapsed_s:.0f} s"
    )
    if report.sample is not None:
        for line in report.sample.splitlines():
            console.print(f"        | {line}", markup=False)


def _print_advice(items: Sequence[Advice]) -> None:
    for item in items:
        console.print(f"advice  {item.text}", markup=False)


class GracefulInterrupt:
    """A progress callback that turns Ctrl-C, or SIGTERM, into KeyboardInterrupt at the end of a step.

    So what is saved is whole. A second Ctrl-C kills the process.
    """

    def __init__(
        self,
        on_progress: ProgressCallback = lambda _report: None,
        signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
    ) -> None:
        """Wrap a callback; `signals` are those that interrupt."""
        self._on_progress, self._signals = on_progress, signals
        self.requested = False

    def __enter__(self) -> Self:
        """Install the signal handler."""
        self._previous_handlers = {s: signal.signal(s, self._on_signal) for s in self._signals}
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the signal handlers of before."""
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)

    def __call__(self, report: Progress) -> None:
        """Pass the report on, then interrupt where Ctrl-C was pressed."""
        self._on_progress(report)
        if self.requested:
            raise KeyboardInterrupt


def print_interrupted(run: Path, options: Sequence[str]) -> None:
    """Print the command that resumes an interrupted run.

    Args:
        run: The run's folder.
        options: Further arguments of the command, those that the run's folder does not know.
    """
    command = shlex.join(["python", "-m", "model", "train", "--resume", str(run), *options])
    console.print(f"stopped and saved; to resume: {command}", markup=False)


def print_sweep_interrupted() -> None:
    """Print that a sweep was ended early, and what the same command does."""
    console.print("stopped; the same command continues the study, and tries the interrupted settings again")


def print_result(checkpoint: Checkpoint, path: Path, *, run: Path, best_val_loss: float, outcome: str) -> None:
    """Print the final checkpoint's loss and path, and advice on it.

    Args:
        checkpoint: The checkpoint, with the loss of the whole validation part.
        path: Its file.
        run: The run's folder.
        best_val_loss: The lowest loss of the validations during the run, in nats per character.
        outcome: Whether it was promoted, in words.
    """
    items = checkpoint.items
    per_item = f", {bits(items.val_loss_per_item):.3f} bits per item" if items is not None else ""
    console.print(
        f"best    validation {checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"{checkpoint.val_protocol} protocol on {checkpoint.val_characters:,} characters{per_item}\n"
        f"saved   {path} ({outcome})\n"
        f"curves  python -m model plot {run}",
        markup=False,
    )
    _print_advice(advice.advise_on_final_loss(best_val_loss, checkpoint.val_loss))


def print_sweep_run(run: SweepRun) -> None:
    """Print one run of a sweep: its loss and settings."""
    end = "" if run.finished else " (pruned)" if run.checkpoint is None else " (interrupted)"
    console.print(f"run {run.number:>3}  {run.val_loss:.4f} nats{end}  {_as_words(run.settings)}", markup=False)


def print_leaderboard(runs: Sequence[SweepRun]) -> None:
    """Print the runs of a sweep, the best first."""
    console.print("leaderboard, best first:")
    for run in runs:
        print_sweep_run(run)


def _as_words(settings: Mapping[str, object]) -> str:
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())
