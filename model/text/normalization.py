"""Normalization of texts: what is read for training and what is sent as a prompt are normalized alike.

A byte order mark at the start is dropped, CR LF and CR become LF, and the text is composed to Unicode NFC, so that a
letter with an accent is one character however it was typed. A checkpoint records the normalization of its text, and
prompts, stop strings and texts to be scored are normalized in the same way.
"""

from __future__ import annotations

import unicodedata
from typing import Literal, get_args

Normalization = Literal["none", "newlines", "nfc"]
"""none: the text as it is. newlines: no byte order mark, LF as the only line end. nfc: the same, and Unicode NFC."""

NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

NORMALIZATION: Normalization = "nfc"
"""The normalization of every text that is trained on now."""

BYTE_ORDER_MARK = "\ufeff"
_FIRST_COMBINING = 0x300
_NEVER_COMBINED = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3))  # Chinese characters, Korean syllables


def normalize(text: str, form: Normalization = NORMALIZATION) -> str:
    """Return a whole text in its normalized form."""
    if form == "none":
        return text
    text = text.removeprefix(BYTE_ORDER_MARK)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text) if form == "nfc" else text


def normalization_of(vocabulary: str, recorded: str | None) -> Normalization:
    """Return the normalization of a checkpoint's text.

    Args:
        vocabulary: The characters of the checkpoint.
        recorded: What the checkpoint says; None for one from before normalizations were recorded. Its text had its line
            ends changed and no byte order mark, unless the vocabulary has these characters.

    Raises:
        ValueError: The checkpoint says something unknown.
    """
    if recorded is None:
        return "none" if {"\r", BYTE_ORDER_MARK} & set(vocabulary) else "newlines"
    for known in NORMALIZATIONS:
        if known == recorded:
            return known
    raise ValueError(f"its normalization is {recorded!r}, expected one of {', '.join(NORMALIZATIONS)}")


class IncrementalComposer:
    """Unicode NFC of a text that comes in chunks, whatever the chunks are.

    The end of each chunk is kept back, from the last character on that cannot be composed with the one before it.
    """

    def __init__(self) -> None:
        """Begin with the empty text."""
        self.has_changed = False  # whether the result differs from the input so far
        self.n_received = 0  # characters
        self._kept = ""

    def compose(self, text: str, *, final: bool = False) -> str:
        """Return the composed text that is complete; `final` says that the text ends here."""
        self.n_received += len(text)
        boundary = _last_boundary(text)
        cut = len(self._kept) + boundary if boundary >= 0 else 0
        text = self._kept + text
        if final:
            cut = len(text)
        self._kept, text = text[cut:], text[:cut]
        composed = unicodedata.normalize("NFC", text)
        self.has_changed |= composed != text
        return composed


def _last_boundary(text: str) -> int:
    """Return the position of the last character that NFC never joins to the one before it; -1 if there is none."""
    for i in range(len(text) - 1, -1, -1):
        code_point = ord(text[i])
        if code_point < _FIRST_COMBINING or any(first <= code_point <= last for first, last in _NEVER_COMBINED):
            return i
    return -1
