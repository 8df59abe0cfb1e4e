"""The stepper in plain torch: any device, any cell, float32 or float64. What the fast ones are tested against.

Rows are computed in tiles of exactly TILE, padded where there are fewer; layers.py says why.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.char_rnn import CharRNN
from model.network.sampling import sample
from model.stepper import SAMPLE, Block, BlockResult
from model.stepper.layers import Layers, Slots

TILE = 16


class ReferenceStepper(Slots):
    """Implements `Stepper`; see there for what each method promises."""

    def __init__(self, network: CharRNN, n_slots: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.n_slots = n_slots
        self.name = "reference"
        self.numerics = f"torch-{device.split(':')[0]}-{str(dtype).removeprefix('torch.float')}"
        self._device = torch.device(device)
        self._layers = Layers(network, dtype, self._device)
        self._table = torch.zeros((n_slots, *self._layers.state_shape), dtype=dtype, device=self._device)

    @torch.inference_mode()
    def run(self, block: Block) -> BlockResult:
        k_steps, n_rows = block.forced_ids.shape
        padded = -(-n_rows // TILE) * TILE
        slots = torch.from_numpy(block.slots.astype(np.int64)).to(self._device)
        state = torch.zeros((padded, *self._table.shape[1:]), dtype=self._table.dtype, device=self._device)
        state[:n_rows] = self._table[slots]  # (B, S, L, H)
        knobs = [
            _padded(v, padded, fill, self._device)
            for v, fill in ((block.temperature, 0), (block.top_k, 0), (block.top_p, 1), (block.min_p, 0))
        ]
        numbers = torch.zeros((k_steps, padded), dtype=torch.float64, device=self._device)
        numbers[:, :n_rows] = torch.from_numpy(block.random_values)
        forced_ids = torch.zeros((k_steps + 1, padded), dtype=torch.int64, device=self._device)
        forced_ids[:k_steps, :n_rows] = torch.from_numpy(block.forced_ids)
        forced_ids[k_steps] = SAMPLE
        steps = torch.zeros(padded, dtype=torch.int64, device=self._device)
        steps[:n_rows] = torch.from_numpy(block.steps)
        ids = torch.zeros((k_steps, padded), dtype=torch.int64, device=self._device)
        logprobs = torch.full((k_steps, padded), torch.nan, dtype=torch.float64, device=self._device)
        # Which products a step needs is known before it runs: nothing is read back from the device inside the block.
        free = np.ones((k_steps, n_rows), dtype=bool)
        free[:-1] = block.forced_ids[1:] == SAMPLE
        free |= np.arange(1, k_steps + 1)[:, None] == block.steps[None, :]
        fed = forced_ids[0]
        for k in range(k_steps):
            going = (steps > k)[:, None, None, None]
            state = torch.where(going, self._layers.advance(fed, state, TILE), state)
            if free[k].any():
                for t in range(0, padded, TILE):
                    tile = slice(t, t + TILE)
                    logits = self._layers.logits(state[tile])  # (TILE, V)
                    ids[k, tile], logprobs[k, tile] = sample(logits, numbers[k, tile], *(v[tile] for v in knobs))
            is_free = (forced_ids[k + 1] == SAMPLE) | (steps == k + 1)
            ids[k] = torch.where(is_free, ids[k], forced_ids[k + 1])
            logprobs[k] = torch.where(is_free, logprobs[k], torch.nan)
            fed = ids[k]
        self._table[slots] = state[:n_rows]
        return BlockResult(
            ids[:, :n_rows].cpu().numpy().astype(np.int32), logprobs[:, :n_rows].cpu().numpy().astype(np.float32)
        )


def _padded(values: NDArray[np.generic], size: int, fill: float, device: torch.device) -> Tensor:
    out = torch.full((size,), fill, dtype=torch.from_numpy(values).dtype, device=device)
    out[: len(values)] = torch.from_numpy(values)
    return out
