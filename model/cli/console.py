"""What several commands print: a progress bar, losses by protocol, the description of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from model.checkpoints.file_format import Checkpoint
from model.config import EvaluationProtocol
from model.evaluation.item_losses import ItemLosses
from model.evaluation.protocols import bits
from model.stepper.choose import choose
from model.text.memory_map import OnProgress

console = Console(highlight=False, soft_wrap=True)


def progress_bar(name: str) -> Progress:
    """Return a progress bar for one task, with its `line` field as text; it is not shown on a pipe."""
    columns = (TextColumn(name), BarColumn(bar_width=24), TextColumn("{task.fields[line]}"))
    return Progress(*columns, TimeRemainingColumn(compact=True), console=console, disable=not console.is_terminal)


@contextmanager
def encoding() -> Iterator[OnProgress]:
    """Show a progress bar while a large text is read; yields its callback."""
    with progress_bar("corpus ") as bar:
        task = bar.add_task("", total=1.0, line="")
        yield lambda stage, done: bar.update(task, completed=done, line=stage)


def print_scores(part: str, n_characters: int, losses: Mapping[EvaluationProtocol, float]) -> None:
    """Print the loss of a part of a text, in nats per character, by protocol."""
    for protocol, nats in losses.items():
        in_bits = f"{bits(nats):.4f} bits per character"
        console.print(f"{part:<6}  ({protocol}) {nats:.4f} nats = {in_bits}, {n_characters:,} characters")


def print_item_scores(part: str, losses: ItemLosses) -> None:
    """Print the loss of the items of a list, in nats per character and per item."""
    nats, n = losses.per_character, len(losses.nats)
    console.print(
        f"{part:<6}  (items) {nats:.4f} nats = {bits(nats):.4f} bits per character, {losses.per_item:.3f} nats = "
        f"{bits(losses.per_item):.3f} bits per item, {n:,} items of {int(losses.characters.sum()):,} characters"
    )


def print_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Print what a checkpoint is, where it came from and which stepper runs it on this machine."""
    c = checkpoint.config
    stepper = choose(checkpoint.network(), n_slots=1, device="cpu", precision=checkpoint.weight_precision())[1]
    cost = "not measured" if checkpoint.int8_cost is None else f"{checkpoint.int8_cost:.5f} nats per character"
    rows = {
        "file": path,
        "fingerprint": checkpoint.fingerprint,
        "network": f"{c.cell}, {c.n_layers} x {c.n_hidden}, embedding {c.n_embed}, {c.n_parameters:,} parameters",
        "vocabulary": f"{len(checkpoint.vocab)} characters: {checkpoint.vocab.characters[:100]!r}",
        "text": f"normalization {checkpoint.vocab.normalization}; prompts are normalized in the same way",
        "validation": f"{checkpoint.val_loss:.4f} nats = {bits(checkpoint.val_loss):.4f} bits per character, "
        f"{checkpoint.val_protocol} protocol on {checkpoint.val_characters:,} characters",
        "training": f"{checkpoint.train_loss:.4f} nats at step {checkpoint.step:,}",
        "corpus": f"{checkpoint.corpus}, " * bool(checkpoint.corpus) + f"sha256 {checkpoint.corpus_sha256}",
        "options": ", ".join(f"{k}={v}" for k, v in checkpoint.options.items()),
        "created": checkpoint.created,
        "int8 adds": cost,
        "stepper": f"on this machine's CPU: {stepper}",
    }
    if (items := checkpoint.items) is not None:
        rows["items"] = (
            f"a list, {items.layout.description}: {items.n_train:,} to train on, {items.n_val:,} to validate, "
            f"{items.val_loss_per_item:.3f} nats = {bits(items.val_loss_per_item):.3f} bits per item; the former "
            f"are {'known by their hashes' if items.has_novelty else 'not known (--no-novelty)'}"
        )
    for name, value in rows.items():
        console.print(f"{name:<12}{value}", markup=False)
