"""What training says at a terminal: a progress line while it runs, advice, samples, a table of what it made."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.evaluation import advice
from model.evaluation.advice import Facts, Look
from model.evaluation.protocols import bits
from model.text.corpus import Corpus
from model.text.memory_map import Encoding
from model.training.progress import Progress as Step
from model.training.progress import Watch

if TYPE_CHECKING:  # a plain run need not load Optuna
    from model.training.sweep import Row

_console = Console(highlight=False, soft_wrap=True)


@contextmanager
def encoding() -> Iterator[Encoding]:
    """A line while a large text is read."""
    with _bar("corpus ") as bar:
        task = bar.add_task("", total=1.0, line="")
        yield lambda stage, done: bar.update(task, completed=done, line=stage)


@contextmanager
def training(corpus: Corpus, model: ModelConfig, config: TrainConfig) -> Iterator[Watch]:
    """A progress line for a run; on a pipe, a line for each look at the validation part."""
    facts = Facts(
        model.n_parameters, len(corpus.train), len(corpus.val), len(corpus.vocab), config.dropout, config.seq_length
    )
    _begin(corpus, model, facts)
    looks: list[Look] = []
    said: set[str] = set()
    with _bar("train  ") as bar:
        task = bar.add_task("", total=None, line="")

        def watch(step: Step) -> None:
            bar.update(task, completed=step.step, total=step.total_steps, line=_line(step))
            if step.val_loss is None:
                return
            _look(step)
            looks.append(Look(step.step, step.train_loss, step.val_loss))
            if len(looks) < config.validations:  # the last is spoken of when all is over
                fresh = [a for a in advice.of_curve(facts, looks) if a.rule not in said]
                said.update(a.rule for a in fresh if a.rule in _DURING)
                _advise([a for a in fresh if a.rule in _DURING])

        yield watch
    _advise(advice.of_curve(facts, looks))


_DURING = {"overfitting", "unstable"}  # the others are known only at the end


def _bar(name: str) -> Progress:
    columns = (TextColumn(name), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
    return Progress(*columns, TimeRemainingColumn(compact=True), console=_console, disable=not _console.is_terminal)


def _begin(corpus: Corpus, model: ModelConfig, facts: Facts) -> None:
    for note in corpus.notes:
        _console.print(f"corpus  note: {note}")
    tested = f", {len(corpus.test):,} are kept for the end" if len(corpus.test) else ""
    _console.print(
        f"corpus  {corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; "
        f"the last {len(corpus.val):,} validate{tested}\n"
        f"model   {model.cell} {model.n_layers} x {model.n_hidden}, {model.n_parameters:,} parameters, "
        f"{model.n_parameters / corpus.n_characters:.2f} for each character"
    )
    _advise(advice.at_start(facts))


def _line(step: Step) -> str:
    line = f"step {step.step:,}  {step.chars_per_s:,.0f} chars/s  lr {step.lr:.2g}  train {step.train_loss:.3f}"
    if step.best is not None:
        line += f"  best val {step.best:.3f} nats {bits(step.best):.3f} bits"
    return line


def _look(step: Step) -> None:
    assert step.val_loss is not None
    mark = " (best)" if step.val_loss == step.best else ""
    _console.print(
        f"        step {step.step:,}: train {step.train_loss:.4f}, validation {step.val_loss:.4f} nats = "
        f"{bits(step.val_loss):.4f} bits per character{mark}, {step.chars_per_s:,.0f} chars/s, {step.elapsed_s:.0f} s"
    )
    if step.sample is not None:
        _console.print(f"        | {step.sample!r}", markup=False)


def _advise(found: Sequence[advice.Advice]) -> None:
    for each in found:
        _console.print(f"advice  {each.text}", markup=False)


class GentleInterrupt:
    """A watch that passes on, and takes Ctrl-C at the end of a step, so that what is saved is whole.

    A second Ctrl-C is taken at once.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.asked = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __call__(self, step: Step) -> None:
        self._watch(step)
        if self.asked:
            raise KeyboardInterrupt


def stopped(run: Path) -> None:
    """How to go on after an interrupt."""
    _console.print(f"stopped and saved; to go on: python -m model train --resume {run}", markup=False)


def trained(checkpoint: Checkpoint, path: Path, *, run: Path, best_look: float, promoted: bool) -> None:
    _console.print(
        f"best    validation {checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"protocol (b) on {checkpoint.val_characters:,} characters\n"
        f"saved   {path}{' (promoted: it will be served)' if promoted else ''}\n"
        f"curves  python -m model plot {run}",
        markup=False,
    )
    _advise(advice.of_whole(best_look, checkpoint.val_loss))


def scores(part: str, n: int, found: Mapping[str, float]) -> None:
    """Losses by protocol."""
    for protocol, nats in found.items():
        _console.print(
            f"{part:<6}  ({protocol}) {nats:.4f} nats = {bits(nats):.4f} bits per character, {n:,} characters"
        )


def swept(row: Row) -> None:
    """A run of a sweep that is over."""
    end = "" if row.finished else " (pruned)"
    _console.print(f"run {row.number:>3}  {row.val_loss:.4f} nats{end}  {_spelled(row.settings)}", markup=False)


def leaderboard(rows: Sequence[Row]) -> None:
    _console.print("leaderboard, best first:")
    for row in rows:
        swept(row)


def describe(checkpoint: Checkpoint, path: Path, *, stepper: str) -> None:
    c = checkpoint.config
    rows = {
        "file": path,
        "fingerprint": checkpoint.fingerprint,
        "network": f"{c.cell}, {c.n_layers} x {c.n_hidden}, embedding {c.n_embed}, {c.n_parameters:,} parameters",
        "vocabulary": f"{len(checkpoint.vocab)} characters: {checkpoint.vocab.characters[:100]!r}",
        "validation": f"{checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"protocol (b) on {checkpoint.val_characters:,} characters",
        "training": f"{checkpoint.train_loss:.4f} nats at step {checkpoint.step:,}",
        "corpus": f"sha256 {checkpoint.corpus_sha256}",
        "options": ", ".join(f"{k}={v}" for k, v in checkpoint.options.items()),
        "created": checkpoint.created,
        "stepper": f"on this machine's CPU: {stepper}",
    }
    for name, value in rows.items():
        _console.print(f"{name:<12}{value}", markup=False)


def _spelled(settings: Mapping[str, object]) -> str:
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in settings.items())
