r"""The LSTM computed gate by gate: the reference for nn.LSTM, and the source of the activations that /inspect shows.

With x_t the input, h the hidden state, c the cell state, and W, U, b the weights of each gate:

    input gate       i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)     how much of the candidate is added
    forget gate      f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)     how much of the old cell state is kept
    candidate        g_t = tanh   (W_g x_t + U_g h_{t-1} + b_g)     what could be added
    output gate      o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o)     how much of the cell state becomes the output
    cell state       c_t = f_t * c_{t-1} + i_t * g_t
    hidden state     h_t = o_t * tanh(c_t)                          also the output of the layer

nn.LSTM stacks the rows of the gates in the order i f g o. Courses also call the four steps learn (i and g), forget (f),
remember (the new c) and use (o and the new h), and h and c the short-term and the long-term memory.

Sources: Hochreiter & Schmidhuber (1997); the forget gate: Gers et al. (2000).
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

_I, _F, _G, _O = range(4)  # the order of the gates in the rows of nn.LSTM's weights


@dataclass(frozen=True, slots=True)
class GateActivations:
    """The activations of one layer for each character of a text: arrays (T, H)."""

    i: NDArray[np.floating]
    f: NDArray[np.floating]
    g: NDArray[np.floating]
    o: NDArray[np.floating]
    c: NDArray[np.floating]
    h: NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one LSTM layer, with the rows of the four gates stacked in the order i f g o."""

    input_weights: Tensor  # (4H, E), W
    hidden_weights: Tensor  # (4H, H), U
    bias: Tensor  # (4H,)

    @classmethod
    def of(cls, network: CharRNN, layer: int, dtype: torch.dtype) -> LayerWeights:
        """Return a layer's weights on the CPU; the two biases of nn.LSTM are added up."""

        def parameter(kind: str) -> Tensor:
            tensor: Tensor = getattr(network.rnn, f"{kind}_l{layer}").detach().to("cpu", dtype)
            return tensor

        return cls(parameter("weight_ih"), parameter("weight_hh"), parameter("bias_ih") + parameter("bias_hh"))

    def preactivation(self, gate: int, x: Tensor, h: Tensor) -> Tensor:
        """Return W x + U h + b (H,) of a gate, for x (E,) and h (H,)."""
        n = len(h)
        rows = slice(gate * n, (gate + 1) * n)
        return self.input_weights[rows] @ x + self.hidden_weights[rows] @ h + self.bias[rows]


def input_gate(weights: LayerWeights, x: Tensor, h: Tensor) -> Tensor:
    """Return i (H,): how much of the candidate is added."""
    return torch.sigmoid(weights.preactivation(_I, x, h))


def forget_gate(weights: LayerWeights, x: Tensor, h: Tensor) -> Tensor:
    """Return f (H,): how much of the old cell state is kept."""
    return torch.sigmoid(weights.preactivation(_F, x, h))


def candidate(weights: LayerWeights, x: Tensor, h: Tensor) -> Tensor:
    """Return g (H,): what could be added to the cell state."""
    return torch.tanh(weights.preactivation(_G, x, h))


def output_gate(weights: LayerWeights, x: Tensor, h: Tensor) -> Tensor:
    """Return o (H,): how much of the cell state becomes the output."""
    return torch.sigmoid(weights.preactivation(_O, x, h))


@torch.inference_mode()
def gate_activations(
    network: CharRNN, ids: Sequence[int] | NDArray[np.integer], dtype: torch.dtype = torch.float64
) -> list[GateActivations]:
    """Run ids (T,) through an LSTM from the zero state, and return the activations of each layer, the lowest first.

    A network of a list has the zero state again where an item begins. In float64 they equal those of nn.LSTM to 1e-12.

    Raises:
        ConfigError: The cell of the network is not an lstm.
    """
    config = network.config
    if config.cell != "lstm":
        raise ConfigError(
            f"the network's cell is {config.cell!r}",
            field="gates",
            value=config.cell,
            expected="'lstm': the other cells have other gates",
        )
    inputs = network.embedding.weight.detach().to("cpu", dtype)[torch.as_tensor(np.asarray(ids, dtype=np.int64))]
    zeros, starts = torch.zeros(config.n_hidden, dtype=dtype), [id == network.item_end for id in ids]
    layers = []
    for layer in range(config.n_layers):
        weights = LayerWeights.of(network, layer, dtype)
        h = c = zeros
        steps = []
        for x, is_start in zip(inputs, starts, strict=True):
            if is_start:
                h = c = zeros
            i, f = input_gate(weights, x, h), forget_gate(weights, x, h)
            g, o = candidate(weights, x, h), output_gate(weights, x, h)
            c = f * c + i * g
            h = o * torch.tanh(c)
            steps.append(torch.stack([i, f, g, o, c, h]))
        stacked = torch.stack(steps) if steps else torch.zeros((0, 6, config.n_hidden), dtype=dtype)  # (T, 6, H)
        inputs = stacked[:, 5]
        layers.append(GateActivations(*(stacked[:, n].numpy() for n in range(6))))
    return layers
