"""A block's buffers and one step of it, of which a graph is made: no shape, address or branch depends on a value.

Everything is torch, so the same body runs eagerly on a CPU, where the tests hold it to the oracle.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from model.network.sampling import sample
from model.stepper import SAMPLE, Block
from model.stepper.layers import Layers

CAPACITY = 256  # steps of a block that the buffers hold


class Body:
    """Buffers for `rows` rows, whole tiles, and the step that advances them all by one character."""

    def __init__(self, layers: Layers, rows: int, tile: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self._tile, self._layers = rows, tile, layers

        def filled(shape: tuple[int, ...], value: float, kind: torch.dtype) -> Tensor:
            return torch.full(shape, value, dtype=kind, device=device)

        self.slots = filled((rows,), 0, torch.int64)
        self.state = filled((rows, *layers.state_shape), 0, dtype)  # (B, S, L, H)
        self.k = filled((1,), 0, torch.int64)  # the step that comes next
        self.steps = filled((rows,), 0, torch.int64)
        self.fed = filled((rows,), 0, torch.int64)
        self.forced_ids = filled((CAPACITY + 1, rows), SAMPLE, torch.int64)
        self.random_values = filled((CAPACITY, rows), 0, torch.float64)
        self.temperature = filled((rows,), 1, torch.float64)
        self.top_k = filled((rows,), 0, torch.int32)
        self.top_p = filled((rows,), 1, torch.float64)
        self.min_p = filled((rows,), 0, torch.float64)
        self.ids = filled((CAPACITY, rows), 0, torch.int64)
        self.logprobs = filled((CAPACITY, rows), 0, torch.float64)

    def load(self, block: Block, no_slot: int) -> None:
        """The block's arrays, into the buffers; the rows past its own stand still, in the slot that is nobody's."""
        k, n = block.forced_ids.shape
        arrays = (
            (self.slots, block.slots, no_slot), (self.steps, block.steps, 0), (self.fed, block.forced_ids[0], 0),
            (self.temperature, block.temperature, 1), (self.top_k, block.top_k, 0), (self.top_p, block.top_p, 1),
            (self.min_p, block.min_p, 0),
        )  # fmt: skip
        for buffer, values, rest in arrays:
            whole = np.full(self.rows, rest, dtype=values.dtype)
            whole[:n] = values
            buffer.copy_(torch.from_numpy(whole))
        forced_ids = np.full((k + 1, self.rows), SAMPLE, dtype=np.int32)
        forced_ids[:k, :n] = block.forced_ids
        random_values = np.zeros((k, self.rows))
        random_values[:, :n] = block.random_values
        self.forced_ids[: k + 1].copy_(torch.from_numpy(forced_ids))
        self.random_values[:k].copy_(torch.from_numpy(random_values))
        self.k.zero_()

    def step(self, filtered: bool) -> None:
        """Feed every row that still goes, draw what follows, and be ready for the next step."""
        going = (self.steps > self.k)[:, None, None, None]
        new = self._layers.advance(self.fed, self.state, self._tile)
        self.state.copy_(torch.where(going, new, self.state))
        numbers = self.random_values.index_select(0, self.k)[0]
        drawn = [self._draw(slice(t, t + self._tile), numbers, filtered) for t in range(0, self.rows, self._tile)]
        ids, logprobs = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        following = self.forced_ids.index_select(0, self.k + 1)[0]
        is_free = (following == SAMPLE) | (self.steps == self.k + 1)
        ids = torch.where(is_free, ids, following)
        self.ids.index_copy_(0, self.k, ids[None])
        self.logprobs.index_copy_(0, self.k, torch.where(is_free, logprobs, torch.nan)[None])
        self.fed.copy_(ids)
        self.k.add_(1)

    def _draw(self, tile: slice, numbers: Tensor, filtered: bool) -> tuple[Tensor, Tensor]:
        knobs = (self.temperature[tile], self.top_k[tile], self.top_p[tile], self.min_p[tile])
        return sample(self._layers.logits(self.state[tile]), numbers[tile], *knobs, filtered=filtered)
