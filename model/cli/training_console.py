"""What `train` and `sweep` print: progress, losses, samples and advice while a run goes on, its result at the end."""

from __future__ import annotations

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
from model.evaluation.advice import Facts, Look
from model.evaluation.protocols import bits
from model.text.corpus import Corpus
from model.training.progress import Progress, Watch

if TYPE_CHECKING:  # a plain run need not load Optuna
    from model.training.sweep import Row

_WHILE_RUNNING = {"overfitting", "unstable"}  # the other rules need the whole curve


@contextmanager
def progress(corpus: Corpus, model: ModelConfig, config: TrainConfig) -> Iterator[Watch]:
    """Show a progress bar for a run, and print a line for each validation; yields the callback for `fit`."""
    facts = Facts(
        model.n_parameters, len(corpus.train), len(corpus.val), len(corpus.vocab), config.dropout, config.seq_length
    )
    _print_setup(corpus, model, facts)
    validations: list[Look] = []
    printed: set[str] = set()
    with progress_bar("train  ") as bar:
        task = bar.add_task("", total=None, line="")

        def watch(report: Progress) -> None:
            bar.update(task, completed=report.step, total=report.total_steps, line=_status(report))
            if report.val_loss is None:
                return
            _print_validation(report)
            validations.append(Look(report.step, report.train_loss, report.val_loss))
            if len(validations) < config.validations:  # after the last one all rules are printed
                new = [
                    a for a in advice.of_curve(facts, validations) if a.rule in _WHILE_RUNNING and a.rule not in printed
                ]
                printed.update(a.rule for a in new)
                _print_advice(new)

        yield watch
    _print_advice(advice.of_curve(facts, validations))


def _print_setup(corpus: Corpus, model: ModelConfig, facts: Facts) -> None:
    for note in corpus.notes:
        console.print(f"corpus  note: {note}")
    test = f", {len(corpus.test):,} more are the test part" if len(corpus.test) else ""
    console.print(
        f"corpus  {corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; "
        f"the validation part is the last {len(corpus.val):,}{test}\n"
        f"model   {model.cell} {model.n_layers} x {model.n_hidden}, {model.n_parameters:,} parameters, "
        f"{model.n_parameters / corpus.n_characters:.2f} for each character"
    )
    _print_advice(advice.at_start(facts))


def _status(report: Progress) -> str:
    line = f"step {report.step:,}  {report.chars_per_s:,.0f} chars/s  lr {report.lr:.2g}  train {report.train_loss:.3f}"
    if report.best is not None:
        line += f"  best val {report.best:.3f} nats {bits(report.best):.3f} bits"
    return line


def _print_validation(report: Progress) -> None:
    assert report.val_loss is not None
    mark = " (best)" if report.val_loss == report.best else ""
    console.print(
        f"        step {report.step:,}: train {report.train_loss:.4f}, validation {report.val_loss:.4f} nats = "
        f"{bits(report.val_loss):.4f} bits per character{mark}, {report.chars_per_s:,.0f} chars/s, "
        f"{report.elapsed_s:.0f} s"
    )
    if report.sample is not None:
        console.print(f"        | {report.sample!r}", markup=False)


def _print_advice(items: Sequence[advice.Advice]) -> None:
    for item in items:
        console.print(f"advice  {item.text}", markup=False)


class GracefulInterrupt:
    """A progress callback that turns Ctrl-C into KeyboardInterrupt at the end of a step.

    So what is saved is whole. A second Ctrl-C interrupts at once.
    """

    def __init__(self, watch: Watch) -> None:
        """Wrap the callback `watch`."""
        self._watch = watch
        self.requested = False

    def __enter__(self) -> Self:
        """Install the signal handler."""
        self._previous_handler = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the signal handler of before."""
        signal.signal(signal.SIGINT, self._previous_handler)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous_handler)

    def __call__(self, report: Progress) -> None:
        """Pass the report on, then interrupt where Ctrl-C was pressed."""
        self._watch(report)
        if self.requested:
            raise KeyboardInterrupt


def print_interrupted(run: Path) -> None:
    """Print how to resume an interrupted run."""
    console.print(f"stopped and saved; to resume: python -m model train --resume {run}", markup=False)


def print_result(checkpoint: Checkpoint, path: Path, *, run: Path, best_val_loss: float, promoted: bool) -> None:
    """Print the final checkpoint's loss and path, and advice on it.

    Args:
        checkpoint: The checkpoint, with the loss of the whole validation part.
        path: Its file.
        run: The run's folder.
        best_val_loss: The lowest loss of the validations during the run, in nats per character.
        promoted: Whether it was promoted.
    """
    console.print(
        f"best    validation {checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"protocol (b) on {checkpoint.val_characters:,} characters\n"
        f"saved   {path}{' (promoted: it will be served)' if promoted else ''}\n"
        f"curves  python -m model plot {run}",
        markup=False,
    )
    _print_advice(advice.of_whole(best_val_loss, checkpoint.val_loss))


def print_sweep_run(row: Row) -> None:
    """Print one run of a sweep: its loss and settings."""
    end = "" if row.finished else " (pruned)"
    console.print(f"run {row.number:>3}  {row.val_loss:.4f} nats{end}  {_as_words(row.settings)}", markup=False)


def print_leaderboard(rows: Sequence[Row]) -> None:
    """Print the runs of a sweep, the best first."""
    console.print("leaderboard, best first:")
    for row in rows:
        print_sweep_run(row)


def _as_words(settings: Mapping[str, object]) -> str:
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())
