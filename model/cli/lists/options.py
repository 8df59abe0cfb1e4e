"""The options for the layout of a list in its file."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from model import arguments
from model.errors import ConfigError
from model.text.items.layout import (
    DUPLICATES,
    ITEM_KINDS,
    LONG_ITEMS,
    MAX_ITEM_CHARS,
    MOST_ITEM_CHARS,
    ItemLayout,
    unescape,
)

LAYOUT_OPTIONS = tuple(f.name for f in fields(ItemLayout) if f.name != "items")
"""The options of a list, beside --items."""


def add_layout(command: argparse.ArgumentParser, *, for_training: bool = False) -> None:
    """Add the options for whether a text is a list, and its layout; `item_layout` reads them.

    Args:
        command: The command's parser.
        for_training: Whether the command writes checkpoints, so that they may keep hashes of the training items.
    """
    group = command.add_argument_group("lists")
    group.add_argument(
        "--items",
        type=arguments.one_of(ITEM_KINDS),
        help="whether the text is a list, and how its items lie in the file: text, lines, paragraphs (separated by "
        "blank lines), separator, csv, tsv, jsonl; auto detects it (default auto)",
    )
    group.add_argument(
        "--separator", help=r"what lies between two items, with --items separator; \n, \t and \0 are read"
    )
    group.add_argument("--column", help="of a table: the column of the items")
    group.add_argument("--group-column", help="of a table: rows that are equal here are in the same part of the split")
    group.add_argument(
        "--max-item-chars",
        type=arguments.number(int, 1, MOST_ITEM_CHARS),
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
    if for_training:
        group.add_argument(
            "--no-novelty",
            dest="novelty",
            action="store_const",
            const=False,
            help="store no hashes of the items: 8 bytes for each, with which generated items are compared",
        )


def refuse(args: argparse.Namespace, names: Iterable[str], expected: str) -> None:
    """Refuse options that would be ignored.

    Args:
        args: Parsed arguments; an option that was not given is None.
        names: Of the options.
        expected: What would make use of them.

    Raises:
        ConfigError: One of them was given.
    """
    for name in names:
        value = getattr(args, name, None)
        if value is not None:
            raise ConfigError(field=name, value=value, expected=expected)


def refuse_for_text(args: argparse.Namespace, layout: ItemLayout) -> None:
    """Refuse the options of a list where the layout is that of a text.

    Raises:
        ConfigError: One of them was given.
    """
    if layout.items == "text":
        refuse(args, LAYOUT_OPTIONS, "none: the corpus is read as a text, not as a list (--items lines, for example)")


def item_layout(args: argparse.Namespace, saved: Mapping[str, Any] | None = None) -> ItemLayout:
    """Return the layout of parsed arguments.

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
