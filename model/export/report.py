"""The report on a model: its description, its losses, what it generates and how much of that is copied."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from model.checkpoints.file_format import Checkpoint
from model.evaluation.protocols import bits
from model.evaluation.report import page, sections
from model.evaluation.report.memorization import MAX_TRAINING_CHARS
from model.network.sampling import MAX_SEED, SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.stepper.items import LANES, GeneratedItem, ItemCollector, ItemConstraints, generate_items
from model.text.corpus import Corpus
from model.text.items.record import ItemRecord

N_TEXTS = 3
"""Samples of a model of a text."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ReportExtent:
    """How much work a report is.

    Attributes:
        items: Of a list: items that are generated and counted.
        chars: Of a text: characters of each sample.
        training_chars: Of a text: characters of the training part in which copies are searched.
        seconds: Generation ends after so many, with what there is; infinity: it is not measured.
        seed: Of what is generated.
    """

    items: int = 1000
    chars: int = 2000
    training_chars: int = MAX_TRAINING_CHARS
    seconds: float = float("inf")
    seed: int = 0


def report_sections(
    path: Path,
    loaded: Checkpoint,
    corpus: Corpus | None,
    metrics: Sequence[Mapping[str, Any]],
    extent: ReportExtent,
) -> list[page.Section]:
    """Describe a model, generate from it, and compare that with its corpus.

    Args:
        path: The checkpoint file.
        loaded: The checkpoint.
        corpus: What it was trained on; None where it is not at hand.
        metrics: Of its run, see `RunFolder.metrics`; none: the page has no loss curves.
        extent: How much is generated and searched.
    """
    parts = [page.Section("Model", rows=_description(path, loaded, corpus))]
    if metrics:
        parts.append(sections.loss_section(metrics, loaded.val_protocol))
    if loaded.items is not None:
        held_out = None if corpus is None else _held_out_items(corpus)
        parts += sections.list_sections(_items(loaded, loaded.items, extent), loaded.items, held_out)
    else:
        train, val = (None, None) if corpus is None else (corpus.train, corpus.val)
        parts += sections.text_sections(loaded.vocab, _texts(loaded, extent), train, val, extent.training_chars)
    return [part for part in parts if not part.is_empty]


def to_report(
    path: Path,
    loaded: Checkpoint,
    corpus: Corpus | None,
    metrics: Sequence[Mapping[str, Any]],
    extent: ReportExtent,
) -> bytes:
    """Return the report as an HTML file; the arguments are those of `report_sections`."""
    return page.render(f"Report on {path.name}", report_sections(path, loaded, corpus, metrics, extent)).encode()


def _description(path: Path, loaded: Checkpoint, corpus: Corpus | None) -> dict[str, str]:
    c, items = loaded.config, loaded.items
    rows = {
        "file": path.name,
        "fingerprint": loaded.fingerprint,
        "network": f"{c.cell}, {c.n_layers} x {c.n_hidden}, embedding {c.n_embed}, {c.n_parameters:,} parameters",
        "validation": f"{loaded.val_loss:.4f} nats = {bits(loaded.val_loss):.4f} bits per character, "
        f"{loaded.val_protocol} protocol on {loaded.val_characters:,} characters",
        "training": f"{loaded.train_loss:.4f} nats at step {loaded.step:,}",
        "corpus": f"sha256 {loaded.corpus_sha256}" + ("" if corpus is not None else ", not at hand"),
    }
    if items is not None:
        rows["items"] = (
            f"{items.layout.description}: {items.n_train:,} to train on, {items.n_val:,} to validate, {items.n_test:,} "
            f"to test; {bits(items.val_loss_per_item):.3f} bits per item"
        )
    if not sections.can_plot():
        rows["plots"] = "left out: matplotlib is not installed where the report was made"
    return rows


def _held_out_items(corpus: Corpus) -> list[str]:
    """Return the items of the validation and the test part."""
    texts = [corpus.vocab.decode(part) for part in (corpus.val, corpus.test)]
    return [item for text in texts for item in text.split(corpus.vocab.end)[1:]]


def _items(loaded: Checkpoint, record: ItemRecord, extent: ReportExtent) -> list[GeneratedItem]:
    """Return a sample of the model's items: no condition but the length that the training allowed."""
    constraints = ItemConstraints(extent.items, unique=False, min_chars=0, max_chars=record.layout.max_item_chars)
    collector = ItemCollector(constraints, record)
    stepper, _ = choose(loaded.network(), **_as_served(loaded, LANES))
    items = generate_items(stepper, loaded.vocab, collector, SamplingParams(), extent.seed)
    return list(_within(extent.seconds, items))


def _texts(loaded: Checkpoint, extent: ReportExtent) -> list[str]:
    stepper, _ = choose(loaded.network(), **_as_served(loaded, 1))
    seeds = [(extent.seed + n) % (MAX_SEED + 1) for n in range(N_TEXTS)]
    texts = (write(stepper, loaded.vocab, "", extent.chars, seed=seed) for seed in seeds)
    return ["".join(_within(extent.seconds / N_TEXTS, text)) for text in texts]


def _within(seconds: float, values: Iterable[_T]) -> Iterator[_T]:
    """Yield values until so many seconds have passed."""
    end_at = time.monotonic() + seconds
    for value in values:
        yield value
        if time.monotonic() > end_at:
            return


def _as_served(loaded: Checkpoint, n_slots: int) -> dict[str, Any]:
    return {"n_slots": n_slots, "device": "cpu", "precision": loaded.weight_precision()}
