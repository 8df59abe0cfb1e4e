r"""The LSTM written out as its four gates: the oracle for the network, and a microscope for those who learn from it.

With x_t the input, h the short-term and c the long-term memory, and [W, U, b] the weights of each gate:

    forget    f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)     what of the long-term memory stays
    learn     i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)     how much of the new is let in
              g_t = tanh   (W_g x_t + U_g h_{t-1} + b_g)     what the new is
    remember  c_t = f_t * c_{t-1} + i_t * g_t                the new long-term memory
    use       o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o)     how much of it shows
              h_t = o_t * tanh(c_t)                          the new short-term memory, which is also the output

The usual names are input gate (i), forget gate (f), cell or candidate (g) and output gate (o); nn.LSTM stacks their
rows in that order, i f g o. Learn, forget, remember and use are how courses teach the same. Source: Hochreiter &
Schmidhuber (1997), the forget gate Gers et al. (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.errors import ConfigError
from model.network.char_rnn import CharRNN


@dataclass(frozen=True, slots=True)
class Gates:
    """Every gate's activation of one layer, for each character of a text: arrays (T, H)."""

    i: NDArray[np.floating]
    f: NDArray[np.floating]
    g: NDArray[np.floating]
    o: NDArray[np.floating]
    c: NDArray[np.floating]
    h: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Weights:
    """One layer's weights, the rows of the four gates stacked i f g o: (4H, E), (4H, H), (4H,)."""

    of_input: Tensor
    of_hidden: Tensor
    bias: Tensor

    @classmethod
    def of(cls, network: CharRNN, layer: int, dtype: torch.dtype) -> Weights:
        def named(kind: str) -> Tensor:
            tensor: Tensor = getattr(network.rnn, f"{kind}_l{layer}").detach().to("cpu", dtype)
            return tensor

        return cls(named("weight_ih"), named("weight_hh"), named("bias_ih") + named("bias_hh"))

    def rows(self, gate: int, x: Tensor, h: Tensor) -> Tensor:
        """What a gate makes of x (E,) and h (H,) before its nonlinearity: (H,)."""
        n = len(h)
        own = slice(gate * n, (gate + 1) * n)
        return self.of_input[own] @ x + self.of_hidden[own] @ h + self.bias[own]


def learn(w: Weights, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """i and g: how much of the new is let in, and what it is."""
    return torch.sigmoid(w.rows(0, x, h)), torch.tanh(w.rows(2, x, h))


def forget(w: Weights, x: Tensor, h: Tensor) -> Tensor:
    """f: what of the long-term memory stays."""
    return torch.sigmoid(w.rows(1, x, h))


def remember(f: Tensor, c: Tensor, i: Tensor, g: Tensor) -> Tensor:
    """The new long-term memory."""
    return f * c + i * g


def use(w: Weights, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """o, and the new short-term memory."""
    o = torch.sigmoid(w.rows(3, x, h))
    return o, o * torch.tanh(c)


@torch.inference_mode()
def gates(
    network: CharRNN, ids: Sequence[int] | NDArray[np.integer], dtype: torch.dtype = torch.float64
) -> list[Gates]:
    """Read ids (T,) from the zero state, and return each layer's activations, the lowest layer first.

    Equal to nn.LSTM in float64 to 1e-12. Raised: ConfigError when the network is no lstm.
    """
    config = network.config
    if config.cell != "lstm":
        raise ConfigError(f"gates: the network's cell is {config.cell!r}, expected 'lstm': the others have other gates")
    inputs = network.embedding.weight.detach().to("cpu", dtype)[torch.as_tensor(np.asarray(ids, dtype=np.int64))]
    found = []
    for layer in range(config.n_layers):
        w = Weights.of(network, layer, dtype)
        h = c = torch.zeros(config.n_hidden, dtype=dtype)
        rows = []
        for x in inputs:
            i, g = learn(w, x, h)
            f = forget(w, x, h)
            c = remember(f, c, i, g)
            o, h = use(w, x, h, c)
            rows.append(torch.stack([i, f, g, o, c, h]))
        stacked = torch.stack(rows) if rows else torch.zeros((0, 6, config.n_hidden), dtype=dtype)  # (T, 6, H)
        inputs = stacked[:, 5]
        found.append(Gates(*(stacked[:, n].numpy() for n in range(6))))
    return found
