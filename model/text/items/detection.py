"""Detection of lists: whether a text is one, by the name of its file and its first lines.

A wrong guess in doubt is "text": that is how every corpus was read before there were lists.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from model.text.items.layout import ItemKind, ItemLayout

SAMPLE_CHARS = 200_000
"""Characters of a text that are examined."""

_MIN_LINES = 100
_MAX_BLANK = 0.01  # part of the lines
_MAX_INDENTED = 0.05
_MIN_DISTINCT = 0.6  # a list of commands may repeat more, but so does a text of short lines
_PROSE_WORDS = 4.0  # on average; lines with fewer are no sentences
_PROSE_LOWER = 0.2  # part of the lines that begin with a small letter: sentences that go on
_PROSE_PUNCTUATION = 0.3  # part of the lines with the punctuation of a sentence
_SENTENCE = re.compile(r"[.,;:!?][\"')]?( |$)")
_SUFFIXES: dict[str, ItemKind] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def detect(text: str, layout: ItemLayout, file_name: str = "") -> ItemLayout:
    """Return the layout with "auto" replaced by what the text is.

    Args:
        text: The text, or its beginning.
        layout: The requested layout; any other kind than "auto" is returned as it is.
        file_name: The name of its file, if it has one: that of a table says so.
    """
    if layout.items != "auto":
        return layout
    lowered = file_name.lower().removesuffix(".gz")
    for suffix, kind in _SUFFIXES.items():
        if lowered.endswith(suffix):
            return replace(layout, items=kind)
    sample = text[:SAMPLE_CHARS]
    lines = sample.split("\n")
    lines = lines[:-1] if len(text) > len(sample) or not lines[-1] else lines
    if layout.column or layout.group_column:
        header, line_end, _ = text.partition("\n")
        # A line that is longer than the beginning of the text cannot be parsed.
        is_json = _is_json_object(header) or (not line_end and header.startswith("{"))
        return replace(layout, items="jsonl" if is_json else "tsv" if "\t" in header else "csv")
    if not _is_list(lines, layout):
        return replace(layout, items="text")
    if all(_is_json_object(line) for line in lines if line.strip()):
        return replace(layout, items="jsonl")
    return replace(layout, items="lines")


def _is_list(lines: list[str], layout: ItemLayout) -> bool:
    filled = [line for line in lines if line.strip()]
    n = len(filled)
    if n < _MIN_LINES or len(lines) - n > _MAX_BLANK * len(lines):
        return False
    if max(map(len, filled)) > layout.max_item_chars or len(set(filled)) < _MIN_DISTINCT * n:
        return False
    if sum(line[0].isspace() for line in filled) > _MAX_INDENTED * n:
        return False
    words = sum(len(line.split()) for line in filled) / n
    goes_on = sum(line[0].islower() for line in filled) / n
    punctuated = sum(_SENTENCE.search(line) is not None for line in filled) / n
    is_prose = words >= _PROSE_WORDS and goes_on >= _PROSE_LOWER and punctuated >= _PROSE_PUNCTUATION
    return not is_prose


def _is_json_object(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
