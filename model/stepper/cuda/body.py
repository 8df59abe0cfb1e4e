"""The buffers of a block and one step over them, for graphs: no shape, address or branch depends on a value.

Everything is torch, so the same step runs eagerly on a CPU, where the tests compare it with the plain loop.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.penalties import NO_CHARACTER, adjusted_logits
from model.network.sampling import SamplingParams, as_batch, as_tensors, sample
from model.stepper import NO_SCORE, SAMPLE, Block
from model.stepper.layers import Layers

CAPACITY = 256  # steps of a block that the buffers hold
(_WINDOW,) = (int(p.maximum) for p in SamplingParams.fields() if p.name == "penalty_window")


class Body:
    """Buffers for `rows` rows, whole tiles, and the step that advances them all by one character."""

    def __init__(self, layers: Layers, rows: int, tile: int, dtype: torch.dtype, device: torch.device) -> None:
        """Allocate buffers for `rows` rows, a multiple of `tile`."""
        self.rows, self._tile, self._layers = rows, tile, layers

        def filled(shape: tuple[int, ...], value: float, kind: torch.dtype) -> Tensor:
            return torch.full(shape, value, dtype=kind, device=device)

        self.slots = filled((rows,), 0, torch.int64)
        self.state = filled((rows, *layers.state_shape), 0, dtype)  # (B, S, L, H)
        self.k = filled((1,), 0, torch.int64)  # the step that comes next
        self.steps = filled((rows,), 0, torch.int64)
        self.fed = filled((rows,), 0, torch.int64)
        self.forced_ids = filled((CAPACITY + 1, rows), SAMPLE, torch.int64)
        self.score_ids = filled((CAPACITY, rows), NO_SCORE, torch.int64)
        self.random_values = filled((CAPACITY, rows), 0, torch.float64)
        self.sampling = as_tensors(as_batch([SamplingParams()] * rows), device)
        self.windows = filled((rows, _WINDOW), NO_CHARACTER, torch.int64)
        self.bias = filled((rows, layers.config.vocab_size), 0, torch.float64)
        self.ids = filled((CAPACITY, rows), 0, torch.int64)
        self.logprobs = filled((CAPACITY, rows), 0, torch.float64)

    def load(self, block: Block, no_slot: int) -> None:
        """Copy the block's arrays into the buffers; the rows past its own stand still, in the slot `no_slot`."""
        k, n = block.forced_ids.shape
        rest = self.rows - n
        self._fill(self.slots, block.slots, no_slot)
        self._fill(self.steps, block.steps, 0)
        self._fill(self.fed, block.forced_ids[0], 0)
        self._fill(self.forced_ids[:k], block.forced_ids, SAMPLE)
        self.forced_ids[k].fill_(SAMPLE)
        self._fill(self.random_values[:k], block.random_values, 0.0)
        if block.score_ids is None:
            self.score_ids[:k].fill_(NO_SCORE)
        else:
            self._fill(self.score_ids[:k], block.score_ids, NO_SCORE)
        sampling = as_tensors(np.concatenate([block.sampling, as_batch([SamplingParams()] * rest)]))
        for name, buffer in self.sampling.items():
            buffer.copy_(sampling[name])
        self.k.zero_()

    def load_adjustment(self, block: Block) -> None:
        """Copy what bias and penalties need; only steps with `adjusted` read it."""
        windows = np.full(tuple(self.windows.shape), NO_CHARACTER, dtype=np.int64)
        if block.windows is not None:
            width = min(block.windows.shape[1], _WINDOW)
            windows[: len(block.windows), _WINDOW - width :] = block.windows[:, block.windows.shape[1] - width :]
        self.windows.copy_(torch.from_numpy(windows))
        if block.logit_bias is None:
            self.bias.zero_()
        else:
            self.bias.copy_(torch.from_numpy(block.logit_bias.dense(*self.bias.shape)))

    def _fill(self, buffer: Tensor, values: NDArray[np.int32] | NDArray[np.float64], rest: float) -> None:
        """Copy (..., B) into a buffer, and `rest` into its rows from B on."""
        whole = np.full(tuple(buffer.shape), rest, dtype=values.dtype)
        whole[..., : values.shape[-1]] = values
        buffer.copy_(torch.from_numpy(whole))

    def step(self, filtered: bool, adjusted: bool = False) -> None:
        """Feed every row that still runs, draw the id that follows, and set up the next step."""
        is_running = (self.steps > self.k)[:, None, None, None]
        new = self._layers.advance(self.fed, self.state, self._tile)
        self.state.copy_(torch.where(is_running, new, self.state))
        numbers = self.random_values.index_select(0, self.k)[0]
        score_ids = self.score_ids.index_select(0, self.k)[0]
        sampled = [
            self._sample(slice(t, t + self._tile), numbers, score_ids, filtered, adjusted)
            for t in range(0, self.rows, self._tile)
        ]
        ids, logprobs = (torch.cat(parts) for parts in zip(*sampled, strict=True))
        following = self.forced_ids.index_select(0, self.k + 1)[0]
        is_sampled = (following == SAMPLE) | (self.steps == self.k + 1)
        ids = torch.where(is_sampled, ids, following)
        logprobs = torch.where(is_sampled | (score_ids != NO_SCORE), logprobs, torch.nan)
        self.ids.index_copy_(0, self.k, ids[None])
        self.logprobs.index_copy_(0, self.k, logprobs[None])
        if adjusted:
            moved = torch.cat([self.windows[:, 1:], ids[:, None]], dim=1)
            self.windows.copy_(torch.where(is_sampled[:, None], moved, self.windows))
        self.fed.copy_(ids)
        self.k.add_(1)

    def _sample(
        self, tile: slice, numbers: Tensor, score_ids: Tensor, filtered: bool, adjusted: bool
    ) -> tuple[Tensor, Tensor]:
        logits = self._layers.logits(self.state[tile])
        params = {name: values[tile] for name, values in self.sampling.items()}
        return sample(
            logits,
            numbers[tile],
            params,
            score_ids=score_ids[tile],
            filtered=filtered,
            adjusted=adjusted_logits(logits, self.windows[tile], self.bias[tile], params) if adjusted else None,
        )
