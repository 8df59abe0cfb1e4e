"""Memorization: how much of what a model generates is copied from what it was trained on.

Of a list: the share of generated items that are training items. Some of them are expected: a model that has learned the
list's distribution generates probable items, whether they were trained on or not. The held-out items say how many: the
split is by a hash, so a training item is as typical as a held-out one, and a model without memory would generate
n_train / n_held_out times as many training items as held-out ones.

Of a text: the longest run of characters that also occurs in the training text, beside the same of a held-out passage
of equal length, which was written without the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.splitmix import mix, random_bits
from model.stepper.items import GeneratedItem
from model.text.corpus import Ids

MAX_TRAINING_CHARS = 20_000_000
"""A longer training text is searched up to here: a megabyte takes about a second."""
_CHUNK = 1 << 18  # windows of the training text that are hashed at once
_DOUBLE, _JOIN = mix(np.array([[1], [2]], np.uint64))


@dataclass(frozen=True, slots=True)
class ItemMemorization:
    """How many of n generated items are training items.

    Attributes:
        n: Generated items, equal ones counted as often as they came.
        n_distinct: Different ones of them.
        n_training: Those that are training items; None where the checkpoint has no hashes of them.
        n_held_out: Those that are held-out items; None without the held-out items.
        size_ratio: How many training items there are for each held-out item.
    """

    n: int
    n_distinct: int
    n_training: int | None
    n_held_out: int | None
    size_ratio: float

    @classmethod
    def of(
        cls, items: Sequence[GeneratedItem], held_out: Sequence[str] | None, n_train: int, n_held_out: int
    ) -> ItemMemorization:
        """Count.

        Args:
            items: Generated without any constraint: a sample of the model's distribution.
            held_out: The held-out items; None where they are not known.
            n_train: How many training items there are.
            n_held_out: How many held-out items there are.
        """
        texts = [item.text for item in items]
        known = bool(items) and all(item.seen_in_training is not None for item in items)
        held_out_items = set(held_out or ())
        return cls(
            len(items),
            len(set(texts)),
            sum(bool(item.seen_in_training) for item in items) if known else None,
            sum(text in held_out_items for text in texts) if held_out is not None else None,
            n_train / max(1, n_held_out),
        )

    @property
    def training_share(self) -> float | None:
        """The share of generated items that are training items."""
        return None if self.n_training is None else self.n_training / max(1, self.n)

    @property
    def expected_share(self) -> float | None:
        """The share that a model which treats training items like held-out ones would have."""
        return None if self.n_held_out is None else min(1.0, self.n_held_out * self.size_ratio / max(1, self.n))

    @property
    def expected_error(self) -> float | None:
        """The standard error of `expected_share`, from the number of held-out items that came."""
        if self.n_held_out is None:
            return None
        return math.sqrt(max(1, self.n_held_out)) * self.size_ratio / max(1, self.n)


@dataclass(frozen=True, slots=True)
class CopiedRun:
    """The longest run of characters of a text that also occurs in another one."""

    start: int  # in the text
    length: int


def longest_copied_run(ids: Ids, training: Ids) -> CopiedRun:
    """Return the longest run of `ids` that occurs in `training`; the first of several.

    Runs are compared by 64-bit hashes. If a run of k characters is copied, so are the shorter ones inside it, so the
    longest is found by doubling and bisection; each step hashes every window of both texts.

    Args:
        ids: (N,) a generated text.
        training: (M,) the training text, also a memory map.
    """
    best, longest = CopiedRun(0, 0), min(len(ids), len(training))
    low, high, length = 1, longest, 1  # the longest run that is not known yet is in low..high
    while low <= high:
        start = _first_copied(ids, training, length)
        if start is None:
            high = length - 1
        else:
            best, low = CopiedRun(start, length), length + 1
        length = min(2 * length, longest) if high == longest else (low + high) // 2
    return best


def _first_copied(ids: Ids, training: Ids, length: int) -> int | None:
    """Return where the first window of a length begins that occurs in the training text; None if none does."""
    windows = _window_hashes(ids, length)
    distinct, number = np.unique(windows, return_inverse=True)
    is_copied = np.zeros(len(distinct), np.bool_)
    for start in range(0, len(training) - length + 1, _CHUNK):
        hashes = _window_hashes(training[start : start + _CHUNK + length - 1], length)
        places = np.minimum(np.searchsorted(distinct, hashes), len(distinct) - 1)
        is_copied[places[distinct[places] == hashes]] = True
    copied = np.flatnonzero(is_copied[number])
    return int(copied[0]) if len(copied) else None


def _window_hashes(ids: Ids, length: int) -> NDArray[np.uint64]:
    """Return a hash of each window of a length, (N - length + 1,): windows of powers of two, joined by doubling.

    A hash is a sum of a random number for each character, times products of random odd multipliers: one for each
    doubling, and one for each join, so that no two places in a window have the same product.
    """
    power, width = mix(np.arange(1, 65537, dtype=np.uint64))[ids], 1  # hashes of the windows of `width` characters
    hashes, covered = power, 0
    while True:
        if length & width:
            hashes = _joined(hashes, power, covered, _JOIN) if covered else power
            covered += width
        if covered == length:
            return hashes
        power, width = _joined(power, power, width, _DOUBLE), 2 * width


def _joined(
    first: NDArray[np.uint64], second: NDArray[np.uint64], offset: int, key: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Return hashes of windows that begin with those of `first`, of `offset` characters, and go on with `second`."""
    n = min(len(first), len(second) - offset)
    multiplier = random_bits(key, np.array([offset], np.uint64)) | np.uint64(1)
    return first[:n] * multiplier + second[offset : offset + n]
