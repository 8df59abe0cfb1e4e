"""The forward pass of training: CharRNN.forward with dropout, weight drop and state resets.

With every probability at zero it equals CharRNN.forward. It draws random numbers only from the given generator, so that
a run is repeatable whatever else draws in the process. It goes layer by layer, because weight drop changes a matrix
that nn.LSTM does not give access to. model.network.native_pass computes the same without autograd.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from model.config import TrainConfig
from model.network.char_rnn import CharRNN, State

LEVELS = 256
"""Masks are drawn as bytes: eight times faster than bernoulli_, with probabilities rounded to 1/256."""

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def regularized_forward(
    network: CharRNN,
    ids: Tensor,
    state: State,
    config: TrainConfig,
    generator: torch.Generator,
    starts: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a window of characters under the regularization of a training run.

    Dropout between layers and before the output: Srivastava et al. (2014), Zaremba et al. (2014). Dropout of the
    embedding, one mask per window: Gal & Ghahramani (2016). Dropout of recurrent weights: DropConnect, Merity et al.
    (2018). Reset of states, so that the network learns to start from zero: Melis et al. (2018).

    Args:
        network: The network to train.
        ids: (B, T) int64.
        state: The state before the window.
        config: The probabilities.
        generator: The source of all random numbers.
        starts: (B, T) bool, where a row begins a new text: its state is the zero state before that character.

    Returns:
        The logits (B, T, V) of the character after each, and the state after the window.
    """
    n_rows = len(ids)
    x = network.embedding(ids)  # (B, T, E)
    if config.embed_dropout:
        x = x * dropout_mask((n_rows, 1, x.shape[2]), config.embed_dropout, generator)
    if config.reset and starts is None:
        draws = torch.rand((1, n_rows, 1), generator=generator, device=ids.device)
        state = tuple(torch.where(draws < config.reset, 0.0, s) for s in state)
    new_states = []
    for layer in range(network.config.n_layers):
        weights = [getattr(network.rnn, f"{name}_l{layer}") for name in _PARAMETERS]
        if config.weight_drop:
            weights[1] = weights[1] * dropout_mask(tuple(weights[1].shape), config.weight_drop, generator)
        layer_state = [s[layer : layer + 1] for s in state]  # S of (1, B, H)
        if starts is not None:
            x, new_state = _torch_layer_with_starts(network.config.cell, x, layer_state, weights, starts)
        else:
            x, new_state = _torch_layer(network.config.cell, x, layer_state, weights)
        new_states.append(new_state)
        if config.dropout:
            x = x * dropout_mask(tuple(x.shape), config.dropout, generator)
    return network.head(x), tuple(torch.cat(parts) for parts in zip(*new_states, strict=True))


def _torch_layer(cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, State]:
    """Run a window through one layer, by the function that nn.LSTM, nn.GRU and nn.RNN call themselves."""
    options: dict[str, Any] = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True}
    options |= {"bidirectional": False, "batch_first": True}
    if cell == "lstm":
        out, h, c = torch.lstm(x, state, weights, **options)
        return out, (h, c)
    out, h = (torch.gru if cell == "gru" else torch.rnn_tanh)(x, state[0], weights, **options)
    return out, (h,)


def _torch_layer_with_starts(
    cell: str, x: Tensor, state: list[Tensor], weights: list[Tensor], starts: Tensor
) -> tuple[Tensor, State]:
    """Run a window whose rows begin again at `starts` through one layer.

    torch's layers cannot reset a row inside a window. So each row is cut at its starts, the pieces are padded to equal
    lengths and read side by side, and their outputs are put back in their places.
    """
    n_rows, n_steps = starts.shape
    begins = starts.clone()
    begins[:, 0] = True
    rows, first = begins.nonzero(as_tuple=True)  # (P,) the row and the first step of each piece, row by row
    piece_of = begins.flatten().cumsum(0).view(n_rows, n_steps) - 1  # (B, T)
    offsets = torch.arange(n_steps, device=x.device)[None, :] - first[piece_of]  # (B, T) within the piece
    lengths = torch.bincount(piece_of.flatten(), minlength=len(rows))
    padded = x.new_zeros(len(rows), int(lengths.max()), x.shape[2]).index_put((piece_of, offsets), x)
    carried = (~starts[rows, first])[None, :, None]  # pieces that continue what the window before ended with
    initial = [torch.where(carried, s[:, rows], 0.0).contiguous() for s in state]
    packed = nn.utils.rnn.pack_padded_sequence(padded, lengths.cpu(), batch_first=True, enforce_sorted=False)
    order = packed.sorted_indices
    assert order is not None
    initial = [s.index_select(1, order) for s in initial]
    options: tuple[Any, ...] = (weights, True, 1, 0.0, True, False)
    data, batch_sizes = packed.data, packed.batch_sizes
    if cell == "lstm":
        out, *after = torch.lstm(data, batch_sizes, initial, *options)
    else:
        function = torch.gru if cell == "gru" else torch.rnn_tanh
        out, *after = function(data, batch_sizes, initial[0], *options)
    packed_out = nn.utils.rnn.PackedSequence(out, batch_sizes, order, packed.unsorted_indices)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(packed_out, batch_first=True)  # (P, longest, H)
    last = piece_of[:, -1]
    assert packed.unsorted_indices is not None
    return outputs[piece_of, offsets], tuple(s[:, packed.unsorted_indices][:, last] for s in after)


def dropout_mask(shape: tuple[int, ...], probability: float, generator: torch.Generator) -> Tensor:
    """Draw a mask for inverted dropout.

    Returns:
        Zeros with the given probability, rounded to 1/256; elsewhere the factor that keeps the mean at one.
    """
    threshold = dropout_threshold(probability)
    n = math.prod(shape)
    words = torch.empty(-(-n // 8), dtype=torch.int64, device=generator.device)
    draws = draw_bytes(words, generator)[:n].view(shape)
    # Compared as floats: torch's comparison of bytes takes five times as long.
    return draws.to(torch.float32).ge_(threshold).mul_(LEVELS / (LEVELS - threshold))


def dropout_threshold(probability: float) -> int:
    """Return the smallest of LEVELS draws with which an element is kept."""
    return min(max(round(probability * LEVELS), 1), LEVELS - 1)


def draw_bytes(words: Tensor, generator: torch.Generator) -> Tensor:
    """Fill int64 words with random bits, and return them as bytes, (8 n,) uint8."""
    return words.random_(-(2**63), None, generator=generator).view(torch.uint8)
