"""What training says at a terminal: a progress line while it runs, a table of what it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.checkpoint import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.corpus import Corpus
from model.evaluate import bits
from model.train import Progress as Step
from model.train import Watch

_console = Console(highlight=False, soft_wrap=True)


@contextmanager
def training(corpus: Corpus, model: ModelConfig, config: TrainConfig) -> Iterator[Watch]:
    """A progress line for a run; on a pipe, a line for each look at the validation part."""
    for note in corpus.notes:
        _console.print(f"corpus  note: {note}")
    _console.print(
        f"corpus  {corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; "
        f"the last {len(corpus.val):,} validate\n"
        f"model   {model.cell} {model.n_layers} x {model.n_hidden}, {model.n_parameters:,} parameters, "
        f"{model.n_parameters / corpus.n_characters:.2f} for each character"
    )
    columns = (
        TextColumn("train  "),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[line]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as bar:
        task = bar.add_task("train", total=None, line="")

        def watch(step: Step) -> None:
            line = f"step {step.step:,}  {step.chars_per_s:,.0f} chars/s  train {step.train_loss:.3f}"
            if step.best is not None:
                line += f"  best val {step.best:.3f} nats {bits(step.best):.3f} bits"
            bar.update(task, completed=step.step, total=step.total_steps, line=line)
            if step.val_loss is not None:
                mark = " (best)" if step.val_loss == step.best else ""
                _console.print(
                    f"        step {step.step:,}: train {step.train_loss:.4f}, validation {step.val_loss:.4f} nats = "
                    f"{bits(step.val_loss):.4f} bits per character{mark}, {step.elapsed_s:.0f} s"
                )

        yield watch


def trained(checkpoint: Checkpoint, path: Path, *, promoted: bool) -> None:
    _console.print(
        f"best    validation {checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"protocol (b) on {checkpoint.val_characters:,} characters\n"
        f"saved   {path}{' (promoted: it will be served)' if promoted else ''}"
    )


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
