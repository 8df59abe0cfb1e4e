"""`sample --items`: whole items of a model of a list, one a line."""

from __future__ import annotations

import argparse
import json
import sys

from model import arguments
from model.checkpoints.file_format import Checkpoint
from model.cli.lists import options
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.items import LANES, ItemCollector, ItemConstraints, generate_items
from model.text.items.layout import MOST_ITEM_CHARS

_MAX_ITEMS = 10**9
_ITEM_OPTIONS = ("no_unique", "novel", "min_chars", "json")
_CONSTRAINTS = ("regex", "choice", "json_schema")


def add_items(command: argparse.ArgumentParser) -> None:
    """Add the options of items."""
    group = command.add_argument_group("lists", "for a model of a list: whole items, one a line")
    group.add_argument(
        "--items",
        type=arguments.number(int, 1, _MAX_ITEMS),
        help="how many items to generate; the prompt is their prefix",
    )
    group.add_argument("--no-unique", action="store_true", default=None, help="items may come more than once")
    group.add_argument(
        "--novel", action="store_true", default=None, help="only items that are not in the list, trained on or held out"
    )
    group.add_argument(
        "--min-chars", type=arguments.number(int, 0, MOST_ITEM_CHARS), help="the shortest item (default 1)"
    )
    group.add_argument(
        "--json", action="store_true", default=None, help="each item as JSON, with its log-probability and novelty"
    )


def refuse_without_items(args: argparse.Namespace) -> None:
    """Refuse the options of items where none are requested.

    Raises:
        ConfigError: One of them was given.
    """
    options.refuse(args, _ITEM_OPTIONS, "none without --items")


def print_items(args: argparse.Namespace, loaded: Checkpoint, params: SamplingParams) -> None:
    """Print items, one a line, and on standard error the reason where there are fewer than requested."""
    options.refuse(args, _CONSTRAINTS, "none with --items, which are constrained by the list")
    limit = loaded.items.layout.max_item_chars if loaded.items is not None else MOST_ITEM_CHARS
    constraints = ItemConstraints(
        args.items,
        unique=not args.no_unique,
        novel=bool(args.novel),
        prefix=loaded.vocab.normalize(args.prompt),
        min_chars=1 if args.min_chars is None else args.min_chars,
        max_chars=limit if args.max_chars is None else args.max_chars,
    )
    collector = ItemCollector(constraints, constraints.check(loaded.items, loaded.vocab))
    stepper, _ = choose(
        loaded.network(), n_slots=LANES, device="cpu", precision=loaded.weight_precision(args.precision)
    )
    for item in generate_items(stepper, loaded.vocab, collector, params, args.seed, args.logit_bias):
        print(json.dumps(item.as_dict(), ensure_ascii=False) if args.json else item.text, flush=True)
    outcome = collector.outcome()
    if outcome["finish_reason"] != "complete":
        rejected = ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in outcome["rejected"].items())
        print(
            f"{outcome['generated']} of {args.items} items: the model has no more such items to give; of "
            f"{outcome['candidates']} candidates were rejected: {rejected}",
            file=sys.stderr,
        )
