"""The stepper in plain torch: any device, any cell, float32 or float64. What the fast ones are tested against.

Rows are computed in tiles of exactly TILE, padded where there are fewer, so that the matrix products always have the
same shape: a library's product promises nothing about a row when the number of rows changes. That a row does not
depend on its place in the tile, or on its neighbours' values, is the library's habit, not its promise; the law tests
hold it to that on each machine they run on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network import CharRNN
from model.sampling import sample
from model.stepper import FREE, Block, Produced

TILE = 16


class ReferenceStepper:
    """Implements `Stepper`; see there for what each method promises."""

    def __init__(self, network: CharRNN, n_slots: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        config = network.config
        self.n_slots = n_slots
        self.name = "reference"
        self.numerics = f"torch-{device.split(':')[0]}-{str(dtype).removeprefix('torch.float')}"
        self._config = config
        self._device = torch.device(device)
        self._layers = [
            {
                kind: getattr(network.rnn, f"{kind}_l{layer}").detach().to(self._device, dtype)
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            for layer in range(config.n_layers)
        ]
        first = self._layers[0]
        # The first layer's input product, for every character: a lookup from then on.
        self._inputs = (
            network.embedding.weight.detach().to(self._device, dtype) @ first["weight_ih"].T + first["bias_ih"]
        )
        self._head_weight = network.head.weight.detach().to(self._device, dtype)
        self._head_bias = network.head.bias.detach().to(self._device, dtype)
        shape = (n_slots, config.state_tensors, config.n_layers, config.n_hidden)
        self._table = torch.zeros(shape, dtype=dtype, device=self._device)

    def read(self, slot: int) -> NDArray[np.floating]:
        copied: NDArray[np.floating] = self._table[slot].cpu().numpy().copy()
        return copied

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        if state is None:
            self._table[slot] = 0
        else:
            self._table[slot] = torch.from_numpy(np.array(state)).to(self._table)

    @torch.inference_mode()
    def run(self, block: Block) -> Produced:
        k_steps, n_rows = block.forced.shape
        padded = -(-n_rows // TILE) * TILE
        slots = torch.from_numpy(block.slots.astype(np.int64)).to(self._device)
        state = torch.zeros((padded, *self._table.shape[1:]), dtype=self._table.dtype, device=self._device)
        state[:n_rows] = self._table[slots]  # (B, S, L, H)
        knobs = [
            _padded(v, padded, fill, self._device)
            for v, fill in ((block.temperature, 0), (block.top_k, 0), (block.top_p, 1), (block.min_p, 0))
        ]
        numbers = torch.zeros((k_steps, padded), dtype=torch.float64, device=self._device)
        numbers[:, :n_rows] = torch.from_numpy(block.uniforms)
        forced = torch.zeros((k_steps + 1, padded), dtype=torch.int64, device=self._device)
        forced[:k_steps, :n_rows] = torch.from_numpy(block.forced)
        forced[k_steps] = FREE
        steps = torch.zeros(padded, dtype=torch.int64, device=self._device)
        steps[:n_rows] = torch.from_numpy(block.steps)
        ids = torch.zeros((k_steps, padded), dtype=torch.int64, device=self._device)
        logprobs = torch.full((k_steps, padded), torch.nan, dtype=torch.float64, device=self._device)
        # Which products a step needs is known before it runs: nothing is read back from the device inside the block.
        free = np.ones((k_steps, n_rows), dtype=bool)
        free[:-1] = block.forced[1:] == FREE
        free |= np.arange(1, k_steps + 1)[:, None] == block.steps[None, :]
        fed = forced[0]
        for k in range(k_steps):
            going = (steps > k)[:, None, None, None]
            new = torch.cat([self._advance(fed[t : t + TILE], state[t : t + TILE]) for t in range(0, padded, TILE)])
            state = torch.where(going, new, state)
            if free[k].any():
                for t in range(0, padded, TILE):
                    tile = slice(t, t + TILE)
                    logits = state[tile, 0, -1] @ self._head_weight.T + self._head_bias  # (TILE, V)
                    ids[k, tile], logprobs[k, tile] = sample(logits, numbers[k, tile], *(v[tile] for v in knobs))
            is_free = (forced[k + 1] == FREE) | (steps == k + 1)
            ids[k] = torch.where(is_free, ids[k], forced[k + 1])
            logprobs[k] = torch.where(is_free, logprobs[k], torch.nan)
            fed = ids[k]
        self._table[slots] = state[:n_rows]
        return Produced(
            ids[:, :n_rows].cpu().numpy().astype(np.int32), logprobs[:, :n_rows].cpu().numpy().astype(np.float32)
        )

    def _advance(self, ids: Tensor, state: Tensor) -> Tensor:
        """Feed one id a row: ids (TILE,), state (TILE, S, L, H) -> the state after them."""
        new = torch.empty_like(state)
        below = self._inputs[ids]  # (TILE, gates * H)
        for layer, w in enumerate(self._layers):
            if layer:
                below = new[:, 0, layer - 1] @ w["weight_ih"].T + w["bias_ih"]
            recurrent = state[:, 0, layer] @ w["weight_hh"].T + w["bias_hh"]
            if self._config.cell == "lstm":
                i, f, g, o = (below + recurrent).chunk(4, dim=1)
                c = torch.sigmoid(f) * state[:, 1, layer] + torch.sigmoid(i) * torch.tanh(g)
                new[:, 0, layer], new[:, 1, layer] = torch.sigmoid(o) * torch.tanh(c), c
            elif self._config.cell == "gru":
                r_in, z_in, n_in = below.chunk(3, dim=1)
                r_rec, z_rec, n_rec = recurrent.chunk(3, dim=1)
                z = torch.sigmoid(z_in + z_rec)
                n = torch.tanh(n_in + torch.sigmoid(r_in + r_rec) * n_rec)
                new[:, 0, layer] = (1 - z) * n + z * state[:, 0, layer]
            else:
                new[:, 0, layer] = torch.tanh(below + recurrent)
        return new


def _padded(values: NDArray[np.generic], size: int, fill: float, device: torch.device) -> Tensor:
    out = torch.full((size,), fill, dtype=torch.from_numpy(values).dtype, device=device)
    out[: len(values)] = torch.from_numpy(values)
    return out
