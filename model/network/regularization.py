"""The forward pass as training sees it: with what is dropped, forgotten and masked on purpose.

With every knob at zero it is CharRNN.forward: to the bit by torch, to rounding by our own C (model/window.py). It draws
from the generator that it is given and from nothing else, so a run is repeatable whatever else draws in the process; it
walks layer by layer, because weight drop changes a matrix that nn.LSTM keeps to itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TrainConfig
from model.network.char_rnn import CharRNN, State
from model.network.native_layer import lstm_window

_MASK_LEVELS = 256  # a mask is drawn as bytes: eight times the speed of bernoulli_, probabilities to 1/256


def forward(
    network: CharRNN, ids: Tensor, state: State, config: TrainConfig, generator: torch.Generator, native: bool = False
) -> tuple[Tensor, State]:
    """ids (B, T) -> logits (B, T, V) and the state after the last, under the run's regularisation.

    native: each layer by window.lstm_window, where it is `usable`.

    Dropout of activations: Srivastava et al. (2014), between layers and before the output as Zaremba et al. (2014);
    of a character's vector: one mask for a whole window, Gal & Ghahramani (2016); of recurrent weights: DropConnect,
    Merity et al. (2018); of states: so that the network also learns to begin, Melis et al. (2018).
    """
    n_rows = len(ids)
    # a first layer may look its input's part up by id: V rows to multiply instead of B x T
    tabled = native and not config.embed_dropout and network.config.vocab_size <= ids.numel()
    x = network.embedding.weight if tabled else network.embedding(ids)  # (V, E) or (B, T, E)
    if config.embed_dropout:
        x = x * mask((n_rows, 1, x.shape[2]), config.embed_dropout, generator)
    if config.reset:
        draws = torch.rand((1, n_rows, 1), generator=generator, device=ids.device)
        state = tuple(torch.where(draws < config.reset, 0.0, s) for s in state)
    after = []
    for layer in range(network.config.n_layers):
        weights = [getattr(network.rnn, f"{kind}_l{layer}") for kind in _KINDS]
        if config.weight_drop:
            weights[1] = weights[1] * mask(tuple(weights[1].shape), config.weight_drop, generator)
        before = [s[layer : layer + 1] for s in state]
        if native:
            x, new = _native_layer(x, before, weights, ids if tabled and layer == 0 else None)
        else:
            x, new = _layer(network.config.cell, x, before, weights)
        after.append(new)
        if config.dropout:
            x = x * mask(tuple(x.shape), config.dropout, generator)
    return network.head(x), tuple(torch.cat(parts) for parts in zip(*after, strict=True))


_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _layer(cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, State]:
    """One layer over a window, by the function that nn.LSTM, nn.GRU and nn.RNN themselves call."""
    shape: dict[str, Any] = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True}
    shape |= {"bidirectional": False, "batch_first": True}
    if cell == "lstm":
        out, h, c = torch.lstm(x, state, weights, **shape)
        return out, (h, c)
    out, h = (torch.gru if cell == "gru" else torch.rnn_tanh)(x, state[0], weights, **shape)
    return out, (h,)


def _native_layer(x: Tensor, state: list[Tensor], weights: list[Tensor], ids: Tensor | None) -> tuple[Tensor, State]:
    """The same of an lstm; with `ids` (B, T), x is what each id stands for, (V, E)."""
    w_ih, w_hh, b_ih, b_hh = weights
    bias = b_ih + 1.0 * b_hh  # times one: a gradient of its own, for gradients are summed and cut in place
    h, c = lstm_window(F.linear(x, w_ih, bias), w_hh, state[0][0], state[1][0], ids)
    return h, (h[None, :, -1], c[None, :, -1])


def mask(shape: tuple[int, ...], dropped: float, generator: torch.Generator) -> Tensor:
    """Zeros with probability `dropped` (to 1/256), elsewhere what keeps the mean at one."""
    threshold = min(max(round(dropped * _MASK_LEVELS), 1), _MASK_LEVELS - 1)
    n = 1
    for size in shape:
        n *= size
    words = torch.empty(-(-n // 8), dtype=torch.int64, device=generator.device)
    drawn = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:n].view(shape)
    return (drawn >= threshold).to(torch.float32).mul_(_MASK_LEVELS / (_MASK_LEVELS - threshold))
