"""The layout of a list in its file: the kind of the file, the column, and how long and equal items are handled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from model.errors import ConfigError

ItemKind = Literal["auto", "text", "lines", "paragraphs", "separator", "csv", "tsv", "jsonl"]
"""auto: detected from the text. text: no list. paragraphs: separated by blank lines. separator: by a given string."""
LongItems = Literal["refuse", "cut", "skip"]
Duplicates = Literal["keep", "drop"]

ITEM_KINDS: tuple[ItemKind, ...] = get_args(ItemKind)
LONG_ITEMS: tuple[LongItems, ...] = get_args(LongItems)
DUPLICATES: tuple[Duplicates, ...] = get_args(Duplicates)
TABLES = ("csv", "tsv", "jsonl")
"""The kinds whose items are in a named column."""

MAX_ITEM_CHARS = 1000
"""The default limit of an item's length."""
MOST_ITEM_CHARS = 100_000
"""The largest limit that can be set."""
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\"}


@dataclass(frozen=True, slots=True)
class ItemLayout:
    """How a corpus is read: as a text, or as a list of items.

    Attributes:
        items: The kind of file.
        separator: What lies between two items, for the kind "separator".
        column: Of a table, the column of the items; empty: its only column.
        group_column: Of a table, a column whose equal values keep items in the same part; empty: none.
        max_item_chars: The longest item that is accepted.
        long_items: Whether a longer one is an error, is cut, or is left out.
        duplicates: Whether equal items count as often as they occur.
        novelty: Whether the checkpoint keeps a hash of each training item, so that generated ones can be compared.
    """

    items: ItemKind = "auto"
    separator: str = ""
    column: str = ""
    group_column: str = ""
    max_item_chars: int = MAX_ITEM_CHARS
    long_items: LongItems = "refuse"
    duplicates: Duplicates = "keep"
    novelty: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: A field has a value that is not accepted, or does not belong to this kind of file.
        """
        for name, choices in (("items", ITEM_KINDS), ("long_items", LONG_ITEMS), ("duplicates", DUPLICATES)):
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(field=name, value=value, expected=f"one of {', '.join(choices)}")
        for name in ("separator", "column", "group_column"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ConfigError(field=name, value=value, expected="a string")
        limit = self.max_item_chars
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MOST_ITEM_CHARS:
            raise ConfigError(
                field="max_item_chars", value=limit, expected=f"a whole number from 1 to {MOST_ITEM_CHARS}"
            )
        if not isinstance(self.novelty, bool):
            raise ConfigError(field="novelty", value=self.novelty, expected="true or false")
        if self.items == "separator" and not self.separator:
            raise ConfigError(field="separator", value=self.separator, expected="the string between two items")
        if self.separator and self.items != "separator":
            raise ConfigError(field="separator", value=self.separator, expected="none, or items = separator")
        if self.items not in ("auto", *TABLES):
            for name in ("column", "group_column"):
                if value := getattr(self, name):
                    raise ConfigError(field=name, value=value, expected=f"none, or items = {', '.join(TABLES)}")

    @property
    def is_list(self) -> bool:
        """Whether the corpus is a list; false also where that is not detected yet."""
        return self.items not in ("auto", "text")

    @property
    def description(self) -> str:
        """Where the items are in the file, as a phrase: "one a line"."""
        if self.items in TABLES:
            column = f", column {self.column}" if self.column else ""
            return f"rows of {'JSON Lines' if self.items == 'jsonl' else self.items.upper()}{column}"
        return {
            "lines": "one a line",
            "paragraphs": "separated by blank lines",
            "separator": f"separated by {self.separator!r}",
        }.get(self.items, self.items)

    def as_dict(self) -> dict[str, Any]:
        """Return the kind, and the fields that are not the defaults, for JSON."""
        default = {f.name: f.default for f in fields(self)}
        return {n: value for n, value in asdict(self).items() if value != default[n] or n == "items"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`.

        Raises:
            ConfigError: A name is no field, or a value is not accepted.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError("no such field", field=name, expected=f"one of {', '.join(known)}")
        return cls(**values)


TEXT = ItemLayout(items="text")
"""A corpus that is one text."""


def unescape(text: str) -> str:
    r"""Read a separator as it is typed on a command line: \n, \t, \0 and \\ stand for the characters."""
    result, i = "", 0
    while i < len(text):
        pair = text[i : i + 2]
        result += _ESCAPES.get(pair, text[i])
        i += 2 if pair in _ESCAPES else 1
    return result
