"""Which part an item belongs to: a hash of the item decides, so nothing else does.

Equal items are in the same part, items that are added move no other, and the order of the file does not matter: within
a part the items lie in the order of their hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.config import TrainConfig
from model.errors import TextError
from model.text.items.reading import ItemList
from model.text.text_statistics import TextStatistics

ENDS = ("\n", "\x1e", "\x1f", "\0", "\ue000")
"""Characters that may stand for the end of an item; the first that no item contains does."""

MIN_DISTINCT_ITEMS = 10
"""The fewest different items that can be split and trained on."""

LEFT_OUT = 3
"""The part of an item that is in none."""

Hashes = NDArray[np.uint64]


def item_hashes(items: Iterable[str]) -> Hashes:
    """Return the 64-bit hashes of items, (M,): by them they are split, and recognized as training items."""
    blake2b = hashlib.blake2b
    items = list(items)
    try:
        encoded = list(map(str.encode, items))
    except UnicodeEncodeError:  # a lone surrogate
        encoded = [item.encode("utf-8", "surrogatepass") for item in items]
    digests = [blake2b(item, digest_size=8).digest() for item in encoded]
    return np.frombuffer(b"".join(digests), "<u8")


@dataclass(frozen=True)
class SplittableItems:
    """The items of a list in the order of their hashes, before it is decided how large the parts are."""

    items: list[str]  # (M,)
    hashes: Hashes  # (M,) of the items, ascending
    fractions: NDArray[np.float64]  # (M,) in [0, 1): the place of each item, or of its group, between the parts
    end: str  # the character that stands for the end of an item
    n_distinct: int = 0
    is_grouped: bool = False  # whether groups decide the part, so that an item may be in several groups
    statistics: TextStatistics = field(default_factory=TextStatistics)

    @classmethod
    def of(cls, listed: ItemList, name: str = "the list") -> SplittableItems:
        """Put the items into the order of their hashes.

        Raises:
            TextError: There are too few different items.
        """
        n_distinct = listed.n_distinct
        if n_distinct < MIN_DISTINCT_ITEMS:
            equal = " and they are all equal" if n_distinct == 1 and len(listed.items) > 1 else ""
            different = f", {n_distinct} of them different" if 1 < n_distinct < len(listed.items) else ""
            problem = f"has {len(listed.items)} items{different}{equal}"
            expected = f"at least {MIN_DISTINCT_ITEMS} different items, or items = text"
            raise TextError(problem, field=name, value=n_distinct, expected=expected)
        statistics = TextStatistics()
        for item in listed.items:
            statistics.update(item)
        end = next((end for end in ENDS if end not in statistics.characters), "")
        if not end:
            problem = "uses every character that could stand for the end of an item"
            raise TextError(problem, field=name, expected="no U+E000 in it, for example")
        hashes = item_hashes(listed.items)
        keys = item_hashes(listed.groups) if listed.layout.group_column else hashes
        order = np.lexsort((keys, hashes))
        fractions = (keys[order] >> np.uint64(11)).astype(np.float64) * 2.0**-53
        items = listed.items
        return cls(
            [items[i] for i in order.tolist()],
            hashes[order],
            fractions,
            end,
            n_distinct,
            bool(listed.layout.group_column),
            statistics,
        )

    def length_of(self, share: float) -> int:
        """Return the length, the end counted, that at least such a share of the items do not exceed."""
        lengths = np.fromiter(map(len, self.items), np.int64, len(self.items))
        return int(np.quantile(lengths, share, method="inverted_cdf")) + 1

    @property
    def n_characters(self) -> int:
        """Characters of all items, their ends counted."""
        return self.statistics.n_characters + len(self.items)

    @property
    def alphabet(self) -> str:
        """The distinct characters, the end counted, in order."""
        return "".join(sorted({*self.statistics.characters, self.end}))

    def part_of(self, config: TrainConfig) -> NDArray[np.int8]:
        """Return 0 for each item of the training part, 1 for the validation part, 2 for the test part, (M,).

        An item that several groups put into several parts is in the first of them only; elsewhere it has LEFT_OUT.
        """
        in_val = self.fractions < config.val_fraction
        in_test = ~in_val & (self.fractions < config.val_fraction + config.test_fraction)
        parts = in_val.astype(np.int8) + 2 * in_test.astype(np.int8)
        if self.is_grouped:
            for part in (0, 1):
                parts[(parts > part) & np.isin(self.hashes, self.hashes[parts == part])] = LEFT_OUT
        return parts

    def evaluation_sizes(self, config: TrainConfig) -> tuple[int, int]:
        """Return the characters of the validation and the test part, the ends counted."""
        lengths = np.fromiter((len(item) + 1 for item in self.items), np.int64, len(self.items))
        sizes = np.bincount(self.part_of(config), weights=lengths, minlength=3)
        return int(sizes[1]), int(sizes[2])

    def smallest_fraction(self) -> float:
        """Return the smallest fraction, in thousandths, that cuts an item off."""
        return float(np.floor(self.fractions.min() * 1000) + 1) / 1000
