"""What a checkpoint knows of the list that its model was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from model.text.items.layout import ItemLayout
from model.text.items.splitting import Hashes, item_hashes

Statistic = Literal["bits", "bits_per_character", "peak_bits"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
"""The columns of `ItemRecord.validation`: of the item, of each of its characters, of its most surprising one."""

DEFAULT_STATISTIC: Statistic = "peak_bits"
"""What items are ranked by. A short odd passage in a long item hardly moves the sum; see docs/decisions."""

MAX_VALIDATION_ITEMS = 20_000
"""Items of the validation part whose statistics are stored: 12 bytes each."""


@dataclass(frozen=True)
class ItemRecord:
    """The list of a checkpoint: how it was read, its sizes, and what its items are compared with."""

    layout: ItemLayout
    n_train: int  # items of the training part
    n_val: int
    n_test: int
    n_distinct: int
    val_loss_per_item: float = 0.0  # nats
    train_hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))  # ascending
    validation: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, len(STATISTICS)), np.float32))
    held_out_hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))  # of all other items, ascending

    @property
    def n_items(self) -> int:
        """Items of all parts."""
        return self.n_train + self.n_val + self.n_test

    @property
    def has_novelty(self) -> bool:
        """Whether it is known which items were trained on."""
        return bool(len(self.train_hashes))

    def known(self, items: Iterable[str]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return of each item whether it is one of the training part, and whether it is one of the list, each (M,).

        Of other items one in 2^64 / n_items is taken for one. A checkpoint of an earlier version has no hashes of the
        items that were held out for validation or the test: of those it says False.
        """
        hashes = item_hashes(items)
        is_trained = _contains(self.train_hashes, hashes)
        return is_trained, is_trained | _contains(self.held_out_hashes, hashes)

    def ranks(self, values: NDArray[np.floating], statistic: Statistic) -> NDArray[np.float64]:
        """Return the percentage of the validation items that are below each value, (n,); NaN without any.

        Args:
            values: (n,) of the statistic.
            statistic: Which one.
        """
        known = np.sort(self.validation[:, STATISTICS.index(statistic)])
        if not len(known):
            return np.full(len(values), np.nan)
        return 100.0 * np.searchsorted(known, np.asarray(values, np.float32)) / len(known)

    def with_validation(self, loss_per_item: float, statistics: NDArray[np.float32]) -> ItemRecord:
        """Return the record with the losses of the validation items, of which as many as fit are kept."""
        return replace(self, val_loss_per_item=loss_per_item, validation=statistics[:MAX_VALIDATION_ITEMS])

    def as_dict(self) -> dict[str, Any]:
        """Return the record without its arrays, for JSON."""
        return {
            "layout": self.layout.as_dict(),
            "n_train": self.n_train,
            "n_val": self.n_val,
            "n_test": self.n_test,
            "n_distinct": self.n_distinct,
            "val_loss_per_item": self.val_loss_per_item,
        }

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name; hashes as int64, which every reader of tensors knows."""
        return {
            "train_hashes": self.train_hashes.view(np.int64),
            "held_out_hashes": self.held_out_hashes.view(np.int64),
            "validation": self.validation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `as_dict` and `arrays`.

        Raises:
            ConfigError: The layout is not one of this version.
            ValueError: An array has another shape or type.
        """
        hashes, validation = arrays["train_hashes"], arrays["validation"]
        held_out = arrays.get("held_out_hashes", np.zeros(0, np.int64))  # an earlier version wrote none
        for name, array in (("train_hashes", hashes), ("held_out_hashes", held_out)):
            if array.dtype != np.int64 or array.ndim != 1:
                raise ValueError(f"items.{name} is {array.dtype} {array.shape}, expected int64 (n,)")
        if validation.dtype != np.float32 or validation.ndim != 2 or validation.shape[1] != len(STATISTICS):
            raise ValueError(f"items.validation is {validation.dtype} {validation.shape}, expected float32 (n, 3)")
        counts = {name: int(values[name]) for name in ("n_train", "n_val", "n_test", "n_distinct")}
        layout, loss = ItemLayout.from_dict(values["layout"]), float(values["val_loss_per_item"])
        return cls(
            layout,
            **counts,
            val_loss_per_item=loss,
            train_hashes=hashes.view(np.uint64),
            held_out_hashes=held_out.view(np.uint64),
            validation=validation,
        )


def _contains(known: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """Return which of the hashes, (M,), are among the known ones, which ascend."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    places = np.searchsorted(known, hashes)
    result: NDArray[np.bool_] = known[np.minimum(places, len(known) - 1)] == hashes
    return result
