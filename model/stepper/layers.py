"""The network's step in plain torch, for rows in tiles of one size: what the reference stepper computes.

A library's matrix product promises nothing about a row when the number of rows changes. So every product has the same
shape, padded where there are fewer rows. That a row does not depend on its place in the tile, or on its neighbours'
values, is observed, not promised: the batch-invariance tests check it wherever they run.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.char_rnn import CharRNN


class Layers:
    """A CharRNN's weights on a device, with the first layer's input product folded into a table."""

    def __init__(self, network: CharRNN, dtype: torch.dtype, device: torch.device) -> None:
        """Copy a network's weights to a device."""
        self.config = config = network.config
        self._item_end = network.item_end
        self._layers = [
            {
                kind: getattr(network.rnn, f"{kind}_l{layer}").detach().to(device, dtype)
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
            for layer in range(config.n_layers)
        ]
        first = self._layers[0]
        # The first layer's input product depends on the id alone: compute it once for every id, then look it up.
        self._inputs = network.embedding.weight.detach().to(device, dtype) @ first["weight_ih"].T + first["bias_ih"]
        self.head_weight = network.head.weight.detach().to(device, dtype)
        self.head_bias = network.head.bias.detach().to(device, dtype)
        self.state_shape = (config.state_tensors, config.n_layers, config.n_hidden)  # (S, L, H)

    def tensors(self) -> list[Tensor]:
        """Return all weights and tables."""
        layers = [tensor for layer in self._layers for tensor in layer.values()]
        return [*layers, self._inputs, self.head_weight, self.head_bias]

    def advance(self, ids: Tensor, state: Tensor, tile: int) -> Tensor:
        """Feed one id to each row; the end of an item first sets the row's state to zero.

        Args:
            ids: (B,), B a multiple of `tile`.
            state: (B, S, L, H).
            tile: The number of rows of every product.

        Returns:
            The state after the ids, (B, S, L, H).
        """
        if self._item_end is not None:
            state = torch.where((ids == self._item_end)[:, None, None, None], 0.0, state)
        return torch.cat([self._tile(ids[t : t + tile], state[t : t + tile]) for t in range(0, len(ids), tile)])

    def logits(self, state: Tensor) -> Tensor:
        """Compute the logits of one tile: state (tile, S, L, H) -> (tile, V)."""
        return state[:, 0, -1] @ self.head_weight.T + self.head_bias

    def _tile(self, ids: Tensor, state: Tensor) -> Tensor:
        new = torch.empty_like(state)
        below = self._inputs[ids]  # (tile, gates * H)
        for layer, w in enumerate(self._layers):
            if layer:
                below = new[:, 0, layer - 1] @ w["weight_ih"].T + w["bias_ih"]
            recurrent = state[:, 0, layer] @ w["weight_hh"].T + w["bias_hh"]
            if self.config.cell == "lstm":
                i, f, g, o = (below + recurrent).chunk(4, dim=1)
                c = torch.sigmoid(f) * state[:, 1, layer] + torch.sigmoid(i) * torch.tanh(g)
                new[:, 0, layer], new[:, 1, layer] = torch.sigmoid(o) * torch.tanh(c), c
            elif self.config.cell == "gru":
                r_in, z_in, n_in = below.chunk(3, dim=1)
                r_rec, z_rec, n_rec = recurrent.chunk(3, dim=1)
                z = torch.sigmoid(z_in + z_rec)
                n = torch.tanh(n_in + torch.sigmoid(r_in + r_rec) * n_rec)
                new[:, 0, layer] = (1 - z) * n + z * state[:, 0, layer]
            else:
                new[:, 0, layer] = torch.tanh(below + recurrent)
        return new


class StateTable:
    """The part of a `Stepper` that keeps its states in one tensor, (n_slots, S, L, H)."""

    _table: Tensor

    def read(self, slot: int) -> NDArray[np.floating]:
        """Copy a slot's state, (S, L, H)."""
        state: NDArray[np.floating] = self._table[slot].cpu().numpy().copy()
        return state

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        """Replace a slot's state; None is the zero state."""
        if state is None:
            self._table[slot] = 0
        else:
            self._table[slot] = torch.from_numpy(np.array(state)).to(self._table)
