"""The losses of the items of a list: each is read alone, from the zero state, and its end counts as a character.

This is the protocol "items". The items of a batch are padded to equal lengths; what is padded counts nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.evaluation.native_reader import native_reader
from model.network.char_rnn import CharRNN
from model.stepper.cpu import CpuStepper
from model.stepper.scoring import PackedTexts, score_texts
from model.text.corpus import Ids

_BATCH_CHARACTERS = 16_384


@dataclass(frozen=True, slots=True)
class ItemLosses:
    """The losses of n items.

    Attributes:
        nats: (n,) of each item: minus the natural logarithm of its probability.
        characters: (n,) of each item, its end counted.
        peaks: (n,) nats of the most surprising character of each.
    """

    nats: NDArray[np.float64]
    characters: NDArray[np.int64]
    peaks: NDArray[np.float64]

    @property
    def per_character(self) -> float:
        """Nats per character, over all characters."""
        return float(self.nats.sum() / self.characters.sum())

    @property
    def per_item(self) -> float:
        """Nats per item."""
        return float(self.nats.mean())

    def statistics(self) -> NDArray[np.float32]:
        """Return bits, bits per character and the most bits of a character of each item, (n, 3)."""
        columns = [self.nats, self.nats / self.characters, self.peaks]
        return (np.stack(columns, axis=1) / math.log(2)).astype(np.float32)


def item_losses(network: CharRNN, ids: Ids, item_end: int, max_characters: int | None = None) -> ItemLosses:
    """Return the losses of items.

    Args:
        network: The network to measure; it is not changed.
        ids: (N,) the items one after the other, each after `item_end`.
        item_end: The id that ends an item.
        max_characters: Only the first items are read, until they have so many characters; the items of a part lie in
            the order of their hashes, so they are a random sample. None: all.
    """
    first = np.flatnonzero(ids == item_end)
    lengths = np.diff(np.append(first, len(ids)))  # characters of each item, its end counted
    if max_characters is not None:
        n = max(1, int(np.searchsorted(np.cumsum(lengths), max_characters, side="right")))
        first, lengths = first[:n], lengths[:n]
    with native_reader(network, n_slots=1) as stepper:
        if stepper is not None:
            return _by_stepper(stepper, ids, first, lengths, item_end)
    order = np.argsort(lengths, kind="stable")
    nats, peaks = np.zeros(len(first)), np.zeros(len(first))
    device, was_training = network.head.weight.device, network.training
    network.eval()
    try:
        with torch.inference_mode():
            start = 0
            while start < len(order):
                # The last of a batch is its longest: as many as fit when all are padded to its length.
                end = start + 1
                while end < len(order) and (end + 1 - start) * lengths[order[end]] <= _BATCH_CHARACTERS:
                    end += 1
                some, start = order[start:end], end
                steps = np.arange(lengths[some[-1]] + 1)
                inside = steps[None, :] < lengths[some, None]  # (n, T + 1): at its length lies the end of an item
                positions = np.minimum(first[some, None] + steps[None, :], len(ids) - 1)
                chunk = ids[positions].astype(np.int64)
                padding = 1 if item_end == 0 else 0  # any other id: an end would begin an item
                x = torch.from_numpy(np.where(inside, chunk, padding)[:, :-1]).to(device)
                y = torch.from_numpy(np.where(inside, chunk, item_end)[:, 1:]).to(device)
                logits, _ = network(x, network.zero_state(len(some)))
                losses = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none").view_as(y)
                counted = torch.where(torch.from_numpy(inside[:, :-1]).to(device), losses, 0.0).double()
                nats[some], peaks[some] = counted.sum(dim=1).cpu().numpy(), counted.amax(dim=1).cpu().numpy()
    finally:
        network.train(was_training)
    return ItemLosses(nats, lengths.astype(np.int64), peaks)


def _by_stepper(
    stepper: CpuStepper, ids: Ids, first: NDArray[np.int64], lengths: NDArray[np.int64], item_end: int
) -> ItemLosses:
    """Return the losses of the items that begin after `first`, of so many characters with their ends."""
    spans = zip(first.tolist(), lengths.tolist(), strict=True)
    keys = [ids[begin + 1 : begin + length].tobytes() for begin, length in spans]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)  # those that begin alike side by side
    characters = np.concatenate([np.frombuffer(key, ids.dtype) for key in keys]).astype(np.int32)
    texts = PackedTexts.of(characters, lengths - 1, order, item_end, item_end)
    losses = -score_texts(stepper, texts).astype(np.float64)
    begins = np.cumsum(lengths[order]) - lengths[order]
    nats, peaks = np.empty(len(first)), np.empty(len(first))
    nats[order], peaks[order] = np.add.reduceat(losses, begins), np.maximum.reduceat(losses, begins)
    return ItemLosses(nats, lengths.astype(np.int64), peaks)
