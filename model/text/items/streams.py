"""The batches of a list: windows over its items, in a new order in each epoch."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.splitmix import mix, random_bits

_GATHERED_ITEMS = 1 << 16  # at once


class ItemStreams:
    """B rows read the items of a list one after the other, packed without gaps; each window continues the last.

    The order is shuffled in each epoch, by the seed and the number of the epoch. Row b begins an epoch at the first
    item that lies at or after the b-th of B equal sections. An epoch is long enough for the longest section, so each
    item is read at least once; a row that is through with its section goes on with the items after it. All of it is a
    function of the step, so that a resumed run needs no stored position. Where an input is `item_end`, an item begins,
    from the zero state.
    """

    def __init__(
        self, ids: NDArray[np.integer], item_end: int, batch_size: int, seq_length: int, seed: int, device: str = "cpu"
    ) -> None:
        """Find the items.

        Args:
            ids: (N,) items one after the other, each after `item_end`, which is in no item.
            item_end: The id that ends an item.
            batch_size: B.
            seq_length: T.
            seed: Of the orders.
            device: Where the windows are needed.
        """
        self.item_end = item_end
        self._ids, self._batch_size, self._seq_length = ids, batch_size, seq_length
        self._seed, self._device = seed, device
        self._first = np.flatnonzero(ids == item_end)  # (M,)
        self._lengths = np.diff(np.append(self._first, len(ids)))  # (M,)
        self._offsets = np.arange(seq_length + 1, dtype=np.int64)[None, :]  # (1, T + 1)
        longest_section = math.ceil(len(ids) / batch_size) + int(self._lengths.max())
        self.epoch_steps = math.ceil(longest_section / seq_length)
        self._epoch: tuple[int, NDArray[np.integer], NDArray[np.int64]] | None = None

    def prepare(self, step: int) -> None:
        """Put the items into the order of a step's epoch; called before the worker threads read its windows."""
        self._in_epoch(step // self.epoch_steps)

    def window(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets (B, T) int64 of some rows at a step; targets are the inputs moved by one."""
        epoch, step_in_epoch = divmod(step, self.epoch_steps)
        ids, starts = self._in_epoch(epoch)
        positions = (starts[rows, None] + step_in_epoch * self._seq_length + self._offsets) % len(ids)
        window = torch.from_numpy(ids[positions].astype(np.int64)).to(self._device)
        return window[:, :-1], window[:, 1:]

    def _in_epoch(self, epoch: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """Return the ids (N,) in the order of an epoch, and where each row begins, (B,)."""
        if self._epoch is not None and self._epoch[0] == epoch:
            return self._epoch[1:]
        order = np.argsort(_random_keys(self._seed, epoch, len(self._first)), kind="stable")
        lengths = self._lengths[order]
        bounds = np.concatenate([[0], np.cumsum(lengths)])  # (M + 1,) where each item begins in the new order
        ids = np.empty_like(self._ids, shape=len(self._ids))
        for n in range(0, len(order), _GATHERED_ITEMS):
            some = order[n : n + _GATHERED_ITEMS]
            start, end = bounds[n], bounds[n + len(some)]
            shift = np.repeat(self._first[some] - bounds[n : n + len(some)], self._lengths[some])
            ids[start:end] = self._ids[np.arange(start, end) + shift]
        sections = np.arange(self._batch_size, dtype=np.int64) * len(ids) // self._batch_size
        starts = bounds[np.searchsorted(bounds, sections)] % len(ids)
        self._epoch = (epoch, ids, starts)
        return ids, starts


def _random_keys(seed: int, epoch: int, n: int) -> NDArray[np.uint64]:
    """Return a random number for each of n items, keyed by seed and epoch."""
    key = mix(mix(np.array([seed], np.uint64)) + np.array([epoch], np.uint64))
    return random_bits(key, np.arange(1, n + 1, dtype=np.uint64))
