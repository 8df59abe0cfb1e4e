"""Reading of the items of a list, and counts of what was left out or cut."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from model.errors import TextError
from model.text.items.layout import TABLES, ItemLayout
from model.text.normalization import Normalization, normalize

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 cannot
_QUOTED_CHARS = 40
_MOST_CSV_FIELD = 2**31 - 1


@dataclass(slots=True)
class ItemList:
    """The items of one or several files, in their order."""

    layout: ItemLayout
    items: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)  # of each item, where the layout has a group column; else none
    n_blank: int = 0
    n_cut: int = 0
    n_skipped: int = 0
    n_dropped: int = 0  # equal to an item before them
    _distinct: set[str] = field(default_factory=set)

    @property
    def n_distinct(self) -> int:
        """How many different items there are."""
        return len(self._distinct)

    @property
    def notes(self) -> list[str]:
        """How many items there are, and what was left out or changed, as sentences."""
        n, description = len(self.items), self.layout.description
        notes = [f"a list of {n:,} items, {description}; {self.n_distinct:,} of them are different"]
        return [*notes, *self.changes]

    @property
    def changes(self) -> list[str]:
        """What was left out or changed, as sentences."""
        layout, notes = self.layout, []
        if self.n_blank:
            notes.append(f"{self.n_blank:,} blank items were left out")
        if self.n_dropped:
            notes.append(f"{self.n_dropped:,} items that equal one before them were left out")
        if self.n_cut:
            notes.append(f"{self.n_cut:,} items were cut to {layout.max_item_chars:,} characters")
        if self.n_skipped:
            notes.append(f"{self.n_skipped:,} items of more than {layout.max_item_chars:,} characters were left out")
        return notes

    def add(self, text: str, name: str) -> None:
        """Add the items of one text.

        Args:
            text: The decoded text.
            name: What it is, in the messages of errors.

        Raises:
            TextError: A row cannot be read, there is no such column, or an item is too long.
        """
        layout = self.layout
        rows = _rows(text, layout, name) if layout.items in TABLES else ((n, s, "") for n, s in _pieces(text, layout))
        for line, item, group in rows:
            if not item.strip():
                self.n_blank += 1
                continue
            if len(item) > layout.max_item_chars:
                if layout.long_items == "refuse":
                    raise _too_long(item, line, layout, name)
                if layout.long_items == "skip":
                    self.n_skipped += 1
                    continue
                item, self.n_cut = item[: layout.max_item_chars], self.n_cut + 1  # noqa: PLW2901
            if layout.duplicates == "drop" and item in self._distinct:
                self.n_dropped += 1
                continue
            self._distinct.add(item)
            self.items.append(item)
            if layout.group_column:
                self.groups.append(group)


def items_of(text: str, layout: ItemLayout, name: str = "items", normalization: Normalization = "none") -> ItemList:
    """Return the items of one text; with a normalization, of the normalized text."""
    result = ItemList(layout)
    result.add(normalize(text, normalization), name)
    return result


def _pieces(text: str, layout: ItemLayout) -> Iterator[tuple[int, str]]:
    """Yield the line on which each item begins, and the item. The end of the last line begins no item."""
    if layout.items == "paragraphs":
        line = 1 + len(text) - len(text.lstrip("\n"))
        text = text.strip("\n")
        start = 0
        for gap in [*_BLANK_LINES.finditer(text), None]:
            piece = text[start : gap.start() if gap else len(text)]
            yield line, piece
            if gap:
                line, start = line + piece.count("\n") + gap.group().count("\n"), gap.end()
        return
    separator = "\n" if layout.items == "lines" else layout.separator
    per_item, line = separator.count("\n"), 1
    text = text.removesuffix(separator)
    if layout.items == "separator":
        text = text.removesuffix("\n").removesuffix(separator) if "\n" not in separator else text
    for piece in text.split(separator):
        yield line, piece
        line += piece.count("\n") + per_item


def _rows(text: str, layout: ItemLayout, name: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the item and the group of each row of a table."""
    if layout.items == "jsonl":
        yield from _json_rows(text, layout, name)
        return
    csv.field_size_limit(_MOST_CSV_FIELD)
    delimiter = "\t" if layout.items == "tsv" else ","
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        columns = _columns(header, layout, name)
        positions = [header.index(column) for column in columns]
        for row in reader:
            cells = [normalize(row[p]) if p < len(row) else "" for p in positions]
            yield reader.line_num, cells[0], cells[-1] if layout.group_column else ""
    except csv.Error as error:
        kind = layout.items.upper()
        raise TextError(f"line {reader.line_num}: {error}", field=name, expected=f"{kind} with a header") from error


def _json_rows(text: str, layout: ItemLayout, name: str) -> Iterator[tuple[int, str, str]]:
    columns: Sequence[str] = ()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"line {number} is not JSON ({error})", field=name, expected="JSON Lines") from error
        if not isinstance(row, dict):
            raise TextError(f"line {number} is no JSON object", field=name, expected="JSON Lines of objects")
        columns = columns or _columns(list(row), layout, name)
        cells = []
        for column in columns:
            value = row.get(column)
            if isinstance(value, bool) or not isinstance(value, str | int | float | None):
                problem = f"line {number}: {column} is {_shortened(json.dumps(value))}"
                raise TextError(problem, field=name, value=column, expected="a string")
            cell = "" if value is None else normalize(str(value))
            if _SURROGATE.search(cell):
                problem = f"line {number}: {column} is {_shortened(json.dumps(cell))}, with half of a surrogate pair"
                raise TextError(problem, field=name, value=column, expected="text that can be written as UTF-8")
            cells.append(cell)
        yield number, cells[0], cells[-1] if layout.group_column else ""


def _columns(header: Iterable[str], layout: ItemLayout, name: str) -> list[str]:
    """Return the columns of the items and of the groups.

    Raises:
        TextError: There is no such column; the error names those that there are.
    """
    known = list(header)
    listed = ", ".join(_shortened(column) for column in known) or "none"
    column = layout.column
    if not column:
        if len(known) != 1:
            problem = f"has {len(known)} columns and none was named"
            expected = f"the column of the items, one of {listed} (or items = text)"
            raise TextError(problem, field=name, value="", expected=expected)
        column = known[0]
    for required in (column, layout.group_column):
        if required and required not in known:
            raise TextError(f"has no column {required!r}", field=name, value=required, expected=f"one of {listed}")
    return [column, layout.group_column] if layout.group_column else [column]


def _too_long(item: str, line: int, layout: ItemLayout, name: str) -> TextError:
    expected = f"at most {layout.max_item_chars:,}: raise max_item_chars, or set long_items to cut or skip"
    problem = f"the item in line {line} has {len(item):,} characters ({_shortened(item)!r})"
    return TextError(problem, field=name, value=len(item), expected=expected)


def _shortened(text: str) -> str:
    return text if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]}..."
