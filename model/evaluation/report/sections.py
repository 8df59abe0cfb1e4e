"""The sections of a report: items or texts that a model generated, measured against its corpus."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from model.evaluation.protocols import bits
from model.evaluation.report.memorization import MAX_TRAINING_CHARS, ItemMemorization, longest_copied_run
from model.evaluation.report.page import Section
from model.stepper.items import GeneratedItem
from model.text.corpus import Ids
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SAMPLE_ITEMS = 40


def can_plot() -> bool:
    """Whether matplotlib is installed; without it sections have no figures."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(draw: Callable[[ModuleType], Figure]) -> Figure | None:
    """Return a plot made with the functions of `plots`; None without matplotlib."""
    if not can_plot():
        return None
    from model.evaluation.report import plots

    return draw(plots)


def loss_section(metrics: Sequence[Mapping[str, Any]], protocol: str) -> Section:
    """Return the section of the loss curves of the run that trained the model."""
    best = min((line["val_loss"] for line in metrics if line["val_loss"] is not None), default=None)
    caption = "Loss of the training and the validation part, in nats per character, during the training."
    if best is not None:
        caption += f" The best validation has {best:.4f} nats, {bits(best):.4f} bits."
    return Section(
        "Loss curves", figure=_figure(lambda plots: plots.loss_curves(metrics, protocol=protocol)), caption=caption
    )


def list_sections(items: Sequence[GeneratedItem], record: ItemRecord, held_out: Sequence[str] | None) -> list[Section]:
    """Return the sections of a model of a list.

    Args:
        items: Generated without any constraint.
        record: What the checkpoint records of its list.
        held_out: The items of the validation and the test part; None where the corpus is not at hand.
    """
    measured = ItemMemorization.of(items, held_out, record.n_train, record.n_val + record.n_test)
    return [
        _memorization_of_items(measured),
        _novelty(items),
        _lengths(items, held_out),
        _samples(items),
    ]


def _memorization_of_items(measured: ItemMemorization) -> Section:
    rows = {
        "generated items": f"{measured.n:,}",
        "different ones": f"{measured.n_distinct:,} ({measured.n_distinct / max(1, measured.n):.2%})",
        "training items": "not known: the checkpoint has no hashes of its training items (--no-novelty)",
        "held-out items": "not known: the corpus is not at hand (--corpus)",
        "training items that are expected": "not known without the held-out items",
    }
    if measured.training_share is not None:
        rows["training items"] = f"{measured.n_training:,} ({measured.training_share:.2%})"
    if measured.expected_share is not None and measured.expected_error is not None:
        rows["held-out items"] = f"{measured.n_held_out:,} ({(measured.n_held_out or 0) / max(1, measured.n):.2%})"
        rows["training items that are expected"] = (
            f"{measured.expected_share:.2%}, with a standard error of {measured.expected_error:.2%}"
        )
    text = (
        "A model that has learned a list generates some of its items. There are "
        f"{measured.size_ratio:.2f} training items for each held-out item, and a hash chose which is which. So a model "
        "that remembers no single item would generate so many times as many training items as held-out ones: the last "
        "row. What lies above it is memorized."
    )
    return Section("Memorization", text, rows)


def _novelty(items: Sequence[GeneratedItem]) -> Section:
    first_places = {item.text: place for place, item in reversed(list(enumerate(items)))}
    is_new = [first_places[item.text] == place for place, item in enumerate(items)]
    curves = {"different from all before": _running_share(is_new)}
    if items and all(item.seen_in_training is not None for item in items):
        curves["no training item"] = _running_share([not item.seen_in_training for item in items])
    caption = (
        "Of the first n generated items: the share that equals none before it, and the share that is no training item."
    )
    return Section("Novelty", figure=_figure(lambda plots: plots.novelty(curves)), caption=caption)


def _running_share(flags: Sequence[bool]) -> list[float]:
    return [count / n for n, count in enumerate(accumulate(flags), 1)]


def _lengths(items: Sequence[GeneratedItem], held_out: Sequence[str] | None) -> Section:
    lengths = {"generated": [len(item.text) for item in items]}
    if held_out is not None:
        lengths["held-out"] = [len(item) for item in held_out]
    rows = {
        f"{name}: mean, median, longest": f"{np.mean(some):.2f}, {np.median(some):g}, {max(some):,} characters"
        for name, some in lengths.items()
        if some
    }
    caption = "The distribution of the lengths of items, their ends not counted."
    figure = _figure(lambda plots: plots.length_distribution(lengths))
    return Section("Lengths", rows=rows, figure=figure, caption=caption)


def _samples(items: Sequence[GeneratedItem]) -> Section:
    rows: dict[str, str] = {}
    for item in items:
        if len(rows) == _SAMPLE_ITEMS:
            break
        seen = {True: ", a training item", False: ", new", None: ""}[item.seen_in_training]
        rows[item.text] = f"{bits(-item.logprob):.2f} bits{seen}"
    return Section("Samples", "The first items that were generated, with the surprisal of each.", rows)


def text_sections(
    vocab: Vocabulary,
    texts: Sequence[str],
    train: Ids | None,
    held_out: Ids | None,
    training_chars: int = MAX_TRAINING_CHARS,
) -> list[Section]:
    """Return the sections of a model of a text.

    Args:
        vocab: The vocabulary of the model.
        texts: Generated ones.
        train: The training part; None where the corpus is not at hand.
        held_out: The validation part.
        training_chars: Characters of the training part in which copies are searched.
    """
    if train is None or held_out is None:
        reason = "not known: the corpus is not at hand (--corpus)"
        samples = [(text, (0, 0)) for text in texts]
        return [
            Section("Memorization", rows={"the longest run that was copied": reason}),
            Section("Samples", "Generated from the beginning of a text.", samples=samples),
        ]
    rows, samples, searched = {}, [], train[:training_chars]
    for n, text in enumerate(texts, 1):
        run = longest_copied_run(vocab.encode(text), searched)
        passage = held_out[len(held_out) * (n - 1) // len(texts) :][: len(text)]
        other = longest_copied_run(passage, searched)
        copied, equal = (t[r.start : r.start + r.length] for t, r in ((text, run), (vocab.decode(passage), other)))
        rows[f"sample {n}: the longest run that is in the training text"] = f"{run.length:,} characters: {copied!r}"
        name = f"a held-out passage of {len(passage):,} characters: the same"
        rows[f"{name} ({n})"] = f"{other.length:,} characters: {equal!r}"
        samples.append((text, (run.start, run.start + run.length)))
    note = (
        "The held-out part was written without the model, so what it has in common with the training text is no copy "
        "but the language. Runs that are much longer in generated text are memorized."
    )
    if len(searched) < len(train):
        note += f" Only the first {len(searched):,} characters of the training text were searched."
    explanation = "Generated from the beginning of a text; the longest run that is in the training text is marked."
    return [Section("Memorization", note, rows), Section("Samples", explanation, samples=samples)]
