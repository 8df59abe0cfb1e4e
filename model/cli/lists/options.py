"""The options that say whether a text is a list, and how its items are found."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from model import arguments
from model.text.items.layout import DUPLICATES, ITEM_KINDS, LONG_ITEMS, MAX_ITEM_CHARS, ItemLayout, unescape


def add_layout(command: argparse.ArgumentParser) -> None:
    """Add the options that say whether a text is a list; `item_layout` reads them."""
    group = command.add_argument_group("lists")
    group.add_argument(
        "--items",
        type=arguments.one_of(ITEM_KINDS),
        help="whether the text is a list, and how its items lie in the file: text, lines, paragraphs (separated by "
        "blank lines), separator, csv, tsv, jsonl; auto finds it out (default auto)",
    )
    group.add_argument(
        "--separator", help=r"what lies between two items, with --items separator; \n, \t and \0 are read"
    )
    group.add_argument("--column", help="of a table: the column of the items")
    group.add_argument("--group-column", help="of a table: rows that are equal here are in the same part of the split")
    group.add_argument(
        "--max-item-chars",
        type=arguments.number(int, 1, 100_000),
        help=f"the longest item (default {MAX_ITEM_CHARS})",
    )
    group.add_argument(
        "--long-items",
        type=arguments.one_of(LONG_ITEMS),
        help="longer items are refused with an error, cut, or skipped (default refuse)",
    )
    group.add_argument(
        "--duplicates",
        type=arguments.one_of(DUPLICATES),
        help="keep or drop items that equal one before them (default keep: what occurs often is more probable)",
    )
    group.add_argument(
        "--no-novelty",
        dest="novelty",
        action="store_const",
        const=False,
        help="store no hashes of the training items: 8 bytes for each, by which items that are generated are compared",
    )


def item_layout(args: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> ItemLayout:
    """Return the layout that parsed arguments stand for.

    Args:
        args: The arguments of `add_layout`.
        saved: The layout of the run that is resumed; arguments override it.

    Raises:
        ConfigError: The arguments contradict each other.
    """
    all_fields: dict[str, Any] = {f.name: getattr(args, f.name, None) for f in fields(ItemLayout)}
    given = {name: value for name, value in all_fields.items() if value is not None}
    if "separator" in given:
        given = {"items": "separator", **given, "separator": unescape(given["separator"])}
    return ItemLayout.from_dict({**(saved or {}), **given})
