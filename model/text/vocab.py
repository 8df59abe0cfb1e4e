"""Characters <-> ids: the sorted distinct characters of a text, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import TextError, UnknownCharacters
from model.text.normalization import NORMALIZATION, Normalization, normalize

OnUnknown = Literal["error", "skip"]


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model can read and write; `characters[i]` has id i."""

    characters: str
    normalization: Normalization = NORMALIZATION  # of the text that the characters are from
    end: str = "\n"  # what ends a line, or an item of a list, and stands before the first one
    _points: NDArray[np.uint32] = field(init=False, repr=False, compare=False)  # (V,) id -> code point
    _table: NDArray[np.int32] = field(init=False, repr=False, compare=False)  # code point -> id, or -1

    def __post_init__(self) -> None:
        """Check the characters and build the table of ids.

        Raises:
            TextError: There are fewer than two characters, or they are not in order.
        """
        points = code_points(self.characters)
        if len(points) < 2 or bool((np.diff(points.astype(np.int64)) <= 0).any()):
            expected = "2 or more distinct characters in order"
            raise TextError(f"got {len(points)} characters", field="vocabulary", expected=expected)
        table = np.full(int(points[-1]) + 2, -1, dtype=np.int32)  # the last entry stands for all larger code points
        table[points] = np.arange(len(points), dtype=np.int32)
        object.__setattr__(self, "_points", points)
        object.__setattr__(self, "_table", table)

    @classmethod
    def of(cls, text: str, max_size: int = 65536, end: str = "\n") -> Vocabulary:
        """Return the vocabulary of a text.

        Raises:
            TextError: The text has fewer than 2 or more than `max_size` distinct characters.
        """
        points = np.flatnonzero(np.bincount(code_points(text), minlength=2))
        problem = f"the text has {len(points)} distinct characters"
        if len(points) > max_size:
            expected = f"at most max_vocab = {max_size}: is it really text? Raise max_vocab if it is"
            raise TextError(problem, value=len(points), expected=expected)
        if len(points) < 2:
            raise TextError(problem, value=len(points), expected="at least 2: there is nothing to learn")
        return cls(characters_of(points), end=end)

    def __len__(self) -> int:
        """Return V, the number of characters."""
        return len(self.characters)

    @cached_property
    def start(self) -> int:
        """The id that is read before the first character of a text, so that an empty prompt can be continued.

        It is `end`, after which lines and items begin, or else id 0. It counts in no position.
        """
        return max(self.characters.find(self.end), 0)

    def normalize(self, text: str) -> str:
        """Return a text as the reader of the training text would have read it. `encode` does not do this."""
        return normalize(text, self.normalization)

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> NDArray[np.int32]:
        """Convert a text to ids (T,).

        Args:
            text: The text.
            on_unknown: "error" refuses characters that the vocabulary lacks, "skip" leaves them out.

        Raises:
            UnknownCharacters: The text has such characters, and they are not to be skipped.
        """
        ids = self.lookup(text)
        unknown = ids < 0
        if unknown.any():
            if on_unknown == "error":
                points = code_points(text)
                _, first = np.unique(points[unknown], return_index=True)
                positions = np.sort(np.flatnonzero(unknown)[first])
                raise UnknownCharacters([(int(i), text[int(i)]) for i in positions])
            ids = ids[~unknown]
        return ids

    def lookup(self, text: str) -> NDArray[np.int32]:
        """Return the id of each character (T,), -1 for those that the vocabulary lacks."""
        return self._table[np.minimum(code_points(text), len(self._table) - 1)]

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Convert ids (T,) to text."""
        return characters_of(self._points[np.asarray(ids, np.intp)])


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the Unicode code points (T,) of a text, lone surrogates included, so that an error can name them."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def characters_of(points: NDArray[np.integer]) -> str:
    """Return the text of Unicode code points (T,): the inverse of `code_points`."""
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
