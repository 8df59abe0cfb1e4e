"""Characters <-> ids: the sorted distinct characters of a text, numbered from 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import TextError, UnknownCharacters

OnUnknown = Literal["error", "skip"]
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model can read and write; `characters[i]` has id i."""

    characters: str
    _table: NDArray[np.int32] = field(init=False, repr=False, compare=False)  # code point -> id, or -1

    def __post_init__(self) -> None:
        points = code_points(self.characters)
        if len(points) < 2 or bool((np.diff(points.astype(np.int64)) <= 0).any()):
            raise TextError(f"vocabulary: expected 2 or more distinct characters in order, got {len(points)}")
        table = np.full(int(points[-1]) + 2, -1, dtype=np.int32)  # the last entry stands for all beyond
        table[points] = np.arange(len(points), dtype=np.int32)
        object.__setattr__(self, "_table", table)

    @classmethod
    def of(cls, text: str, max_size: int = 65536) -> Vocabulary:
        """The vocabulary of a text. Raised: TextError when it is larger than max_size or smaller than 2."""
        seen = np.bincount(code_points(text), minlength=2)
        points = np.flatnonzero(seen).astype(np.uint32)
        if len(points) > max_size:
            raise TextError(
                f"the text has {len(points)} distinct characters, expected at most max_vocab = {max_size}: is it "
                "really text? Raise max_vocab if it is"
            )
        if len(points) < 2:
            raise TextError(f"the text has {len(points)} distinct characters, expected at least 2: nothing to learn")
        return cls(points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass"))

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def start(self) -> int:
        """The id that a text is taken to follow: a newline, for that is where lines begin; else id 0.

        It is read before the first character, so that an empty prompt has something to go on from; it counts in no
        position.
        """
        return max(self.characters.find("\n"), 0)

    def encode(self, text: str, on_unknown: OnUnknown = "error") -> NDArray[np.int32]:
        """Text -> ids (T,) int32. Raised: UnknownCharacters, unless they are to be skipped."""
        points = code_points(text)
        ids = self._table[np.minimum(points, len(self._table) - 1)]
        unknown = ids < 0
        if unknown.any():
            if on_unknown == "error":
                _, first = np.unique(points[unknown], return_index=True)
                where = np.sort(np.flatnonzero(unknown)[first])
                raise UnknownCharacters([(int(i), text[int(i)]) for i in where])
            ids = ids[~unknown]
        return ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Ids -> text."""
        characters = self.characters
        return "".join([characters[i] for i in ids])


def code_points(text: str) -> NDArray[np.uint32]:
    """Text -> its Unicode code points (T,), lone surrogates included: whatever came in can be named."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
