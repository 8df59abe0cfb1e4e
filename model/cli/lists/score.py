"""`score` with a model of a list: the loss of a part of its items, or every item of a file or a pipe."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model import arguments
from model.checkpoints.file_format import Checkpoint
from model.cli import console
from model.cli.lists import options
from model.cli.options import corpus_of_model, store_folder
from model.config import WeightPrecision
from model.errors import ConfigError, TextError
from model.evaluation.item_losses import ItemLosses, item_losses
from model.stepper.choose import choose
from model.stepper.scoring import ItemScores, score_items
from model.text.corpus import Corpus, Ids
from model.text.decoding import TextDecoder, read_text
from model.text.items.detection import detect
from model.text.items.layout import ItemLayout
from model.text.items.reading import ItemList, items_of
from model.text.items.record import DEFAULT_STATISTIC, STATISTICS, ItemRecord
from model.text.memory_map import detect_layout
from model.text.normalization import Normalization

_SLOTS = 256
_BATCH_ITEMS = 4096
_READ_BYTES = 1 << 20
_STDIN = "-"


def add_items(command: argparse.ArgumentParser) -> None:
    """Add the options of items."""
    options.add_layout(command)
    group = command.add_argument_group("items", "of a model of a list")
    group.add_argument(
        "--each",
        action="store_true",
        default=None,
        help="print each item: its rank among the validation items in percent, its bits, bits per character, the bits "
        "and the position of its most surprising character. The corpus may be -, the standard input, read as it comes",
    )
    group.add_argument(
        "--above",
        type=arguments.number(float, 0, 100),
        help="print only items of a higher rank: above 99.9 are those more surprising than 99.9%% of the validation "
        "items",
    )
    group.add_argument(
        "--rank-by",
        type=arguments.one_of(STATISTICS),
        help=f"what is ranked: {', '.join(STATISTICS)} (default {DEFAULT_STATISTIC})",
    )
    group.add_argument("--json", action="store_true", default=None, help="each item as JSON")


def are_requested(args: argparse.Namespace) -> bool:
    """Whether the arguments are about items, whatever the model is."""
    return bool(args.each) or args.above is not None or args.items not in (None, "auto", "text")


def refuse_for_text(args: argparse.Namespace) -> None:
    """Refuse the options of items for a model of a text.

    Raises:
        ConfigError: One of them was given.
    """
    names = (*options.LAYOUT_OPTIONS, "rank_by", "json")
    options.refuse(args, names, "none: the model was trained on a text, so it scores no items")


def run(args: argparse.Namespace, loaded: Checkpoint) -> None:
    """Score a list.

    Raises:
        ConfigError: The model is not of a list, or an option does not fit.
        TextError: The list cannot be read.
    """
    if (record := loaded.items) is None:
        problem = "the model was trained on a text, so it scores no items"
        raise ConfigError(problem, field="items", value=args.items, expected="a model of a list (train --items lines)")
    if args.protocols is not None:
        raise ConfigError(field="protocols", value=args.protocols, expected="none: a list has the protocol items")
    if args.corpus is None:
        raise ConfigError(field="corpus", value=None, expected="a file of items, or - for the standard input")
    saved = {name: value for name, value in record.layout.as_dict().items() if name != "novelty"}
    if args.items or args.separator or args.column:  # another kind of file than that of the training
        saved = {name: value for name, value in saved.items() if name in ("max_item_chars", "long_items")}
    is_by_text = bool(args.each) or args.above is not None
    if is_by_text:
        options.refuse(args, ("part",), "none with --each or --above: every item is scored")
        saved.pop("duplicates", None)  # equal items are printed as often as they occur
    else:
        options.refuse(args, ("rank_by", "json"), "none without --each or --above")
    layout = options.item_layout(args, saved)
    if is_by_text:
        precision: WeightPrecision = args.precision or loaded.weight_precision()
        stepper, _ = choose(loaded.network(), n_slots=_SLOTS, device="cpu", precision=precision)
        for batch in _batches(args.corpus, layout, loaded):
            _print_scores(args, record, score_items(stepper, loaded.vocab, batch))
        return
    _print_loss(args, loaded, layout)


def _print_loss(args: argparse.Namespace, loaded: Checkpoint, layout: ItemLayout) -> None:
    """Print the loss of a part, split as the model's run split its list."""
    if str(args.corpus) == _STDIN:
        raise ConfigError(field="corpus", value=_STDIN, expected="a file, or --each for the standard input")
    layout, part = _list_layout(detect_layout([args.corpus], layout), f"corpus {args.corpus}"), args.part or "val"
    corpus = corpus_of_model([args.corpus], loaded.options, store_folder(args, args.store) / "texts", layout)
    if part == "test" and not len(corpus.test):
        problem = "got 'test', but the model's run has no test part (its test_fraction is 0)"
        raise ConfigError(problem, field="part", value="test")
    parts = {"val": [corpus.val], "test": [corpus.test], "all": [corpus.train, corpus.val, corpus.test]}[part]
    ids = loaded.vocab.encode(_in_other_ends(corpus, loaded, np.concatenate(parts)))
    if args.precision:
        stepper, name = choose(loaded.network(), n_slots=_SLOTS, device="cpu", precision=args.precision)
        scores = score_items(stepper, loaded.vocab, loaded.vocab.decode(ids).split(loaded.vocab.end)[1:])
        losses = ItemLosses(-scores.logprob, scores.characters, scores.peak_bits * math.log(2))
        console.print_item_scores(f"{part}, {name}", losses)
        return
    console.print_item_scores(part, item_losses(loaded.network(), ids, loaded.vocab.start))


def _in_other_ends(corpus: Corpus, loaded: Checkpoint, ids: Ids) -> str:
    """Return the items of a corpus as a text with the ends of the model."""
    text, end = corpus.vocab.decode(ids), loaded.vocab.end
    if corpus.vocab.end == end:
        return text
    if end in text:
        problem = f"an item has {end!r}, which is the end of an item to this model"
        raise TextError(problem, field="corpus", expected="items without it")
    return text.replace(corpus.vocab.end, end)


def _list_layout(layout: ItemLayout, name: str) -> ItemLayout:
    """Return a layout if it is that of a list.

    Raises:
        ConfigError: It is not.
    """
    if not layout.is_list:
        problem = "it is read as a text, not as a list"
        raise ConfigError(problem, field=name, expected="a list, or the layout of its items: --items lines")
    return layout


def _batches(path: Path, layout: ItemLayout, loaded: Checkpoint) -> Iterator[list[str]]:
    """Yield the normalized items of a file or of the standard input; lines of a pipe as soon as they are there.

    What was left out or cut is printed at the end, on standard error.
    """
    name, normalization = f"corpus {path}", loaded.vocab.normalization
    if str(path) == _STDIN:
        if layout.items == "auto" and not layout.column:
            layout = replace(layout, items="lines")
        if layout.items in ("lines", "jsonl"):
            yield from _lines_of_pipe(layout, normalization)
            return
        name = "standard input"
        text = TextDecoder(name, normalization).decode(sys.stdin.buffer.read(), final=True)
    else:
        text, _ = read_text(path, normalization)
    listed = items_of(text, _list_layout(detect(text, layout, path.name), name), name, normalization)
    for first in range(0, len(listed.items), _BATCH_ITEMS):
        yield listed.items[first : first + _BATCH_ITEMS]
    _print_changes(listed)


def _lines_of_pipe(layout: ItemLayout, normalization: Normalization) -> Iterator[list[str]]:
    """Yield the lines of the standard input. Nothing is read ahead of what is scored, so a fast writer has to wait.

    Raises:
        ConfigError: Equal items are to be dropped, which would need all lines so far.
        TextError: A line cannot be used.
    """
    if layout.duplicates == "drop":
        expected = "keep: lines of the standard input are scored as they come"
        raise ConfigError(field="duplicates", value="drop", expected=expected)
    descriptor, rest, n_lines, changes = sys.stdin.fileno(), "", 0, ItemList(layout)
    decoder = TextDecoder("standard input", "newlines")  # composing keeps the last character back: lines are composed

    def batches(text: str) -> Iterator[list[str]]:
        listed = items_of(text, layout, f"standard input, after line {n_lines}", normalization)
        for first in range(0, len(listed.items), _BATCH_ITEMS):
            yield listed.items[first : first + _BATCH_ITEMS]
        changes.n_blank += listed.n_blank
        changes.n_cut += listed.n_cut
        changes.n_skipped += listed.n_skipped

    while chunk := os.read(descriptor, _READ_BYTES):
        text = rest + decoder.decode(chunk)
        complete, newline, rest = text.rpartition("\n")
        if newline:
            yield from batches(complete)
            n_lines += complete.count("\n") + 1
    last = rest + (decoder.decode(b"", final=True) if decoder.n_bytes else "")
    if last:
        yield from batches(last)
    _print_changes(changes)


def _print_changes(listed: ItemList) -> None:
    for change in listed.changes:
        print(f"note: {change}", file=sys.stderr)


def _print_scores(args: argparse.Namespace, record: ItemRecord, scores: ItemScores) -> None:
    statistic = args.rank_by or DEFAULT_STATISTIC
    ranks = record.ranks(scores.statistic(statistic), statistic)
    chosen: Sequence[int] = range(len(scores))
    if args.above is not None:
        chosen = sorted({*np.flatnonzero(ranks > args.above).tolist(), *scores.unknown})
    lines = []
    if args.json:
        dicts = scores.as_dicts(ranks)
        lines = [json.dumps({"text": scores.texts[i], **dicts[i]}, ensure_ascii=False) for i in chosen]
    else:
        for i in chosen:
            score = scores[i]
            position, peak = score.peak
            lines.append(
                f"{ranks[i]:7.3f}  {score.bits:8.2f} bits  {score.bits_per_character:6.3f} each  {peak:6.2f} at "
                f"{position:<4} {score.text}"
            )
    if lines:
        print("\n".join(lines), flush=True)
