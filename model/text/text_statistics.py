"""What is measured of a text while it is read: its length, its distinct characters and its hash."""

from __future__ import annotations

import hashlib

import numpy as np

from model.text.vocab import characters_of, code_points

_N_CODE_POINTS = 0x110000  # of Unicode


class TextStatistics:
    """Length, distinct characters and SHA-256 of a text that comes in chunks."""

    def __init__(self) -> None:
        """Begin with the empty text."""
        self.n_characters = 0  # so far
        self._occurs = np.zeros(_N_CODE_POINTS, dtype=np.bool_)
        self._digest = hashlib.sha256()

    def update(self, text: str) -> None:
        """Add the next part of the text."""
        self.n_characters += len(text)
        self._occurs[code_points(text)] = True
        self._digest.update(text.encode())

    @property
    def characters(self) -> str:
        """The distinct characters, in order."""
        return characters_of(np.flatnonzero(self._occurs))

    @property
    def sha256(self) -> str:
        """The identity of the text, in hex: `text_sha256` of the whole."""
        return self._digest.hexdigest()


def text_sha256(text: str) -> str:
    """Return the identity of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()
