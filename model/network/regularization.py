"""The forward pass of training: CharRNN.forward with dropout, weight drop and state resets.

With every probability at zero it equals CharRNN.forward: exactly with torch's layers, to rounding with the native LSTM
layer. It draws random numbers only from the given generator, so that a run is repeatable whatever else draws in the
process. It goes layer by layer, because weight drop changes a matrix that nn.LSTM does not give access to.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import Bf16Order, TrainConfig
from model.network.char_rnn import CharRNN, State
from model.network.native_layer import native_lstm

_LEVELS = 256  # masks are drawn as bytes: eight times faster than bernoulli_, with probabilities rounded to 1/256
_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def regularized_forward(
    network: CharRNN,
    ids: Tensor,
    state: State,
    config: TrainConfig,
    generator: torch.Generator,
    native: bool = False,
    starts: Tensor | None = None,
    bf16: Bf16Order | None = None,
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
        native: Whether to compute each layer with `native_lstm`; see `supports_native_lstm`.
        starts: (B, T) bool, where a row begins a new text: its state is the zero state before that character.
        bf16: Round the factors of the native layers' products to bfloat16, and add up in this order.

    Returns:
        The logits (B, T, V) of the character after each, and the state after the window.
    """
    n_rows = len(ids)
    # The native first layer can look up its input by id: V rows to multiply instead of B x T.
    by_id = native and not config.embed_dropout and network.config.vocab_size <= ids.numel()
    x = network.embedding.weight if by_id else network.embedding(ids)  # (V, E) or (B, T, E)
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
        if native:
            x, new_state = _native_layer(x, layer_state, weights, ids if by_id and layer == 0 else None, starts, bf16)
        elif starts is not None:
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


def _native_layer(
    x: Tensor,
    state: list[Tensor],
    weights: list[Tensor],
    ids: Tensor | None,
    starts: Tensor | None,
    bf16: Bf16Order | None,
) -> tuple[Tensor, State]:
    """Run a window through one lstm layer by the native code; with `ids` (B, T), x (V, E) has one row per id.

    With `bf16`, the factors of the products are rounded to bfloat16, but not those of an input by id: it is small.
    """
    w_ih, w_hh, b_ih, b_hh = weights
    # Times one, so that each bias has a gradient tensor of its own: gradients are summed and clipped in place.
    bias = b_ih + 1.0 * b_hh
    rounds = bf16 and ids is None
    inputs = F.linear(x.bfloat16(), w_ih.bfloat16()).float() + bias if rounds else F.linear(x, w_ih, bias)
    h, c = native_lstm(inputs, w_hh, state[0][0], state[1][0], ids, starts, bf16)
    return h, (h[None, :, -1], c[None, :, -1])


def dropout_mask(shape: tuple[int, ...], probability: float, generator: torch.Generator) -> Tensor:
    """Draw a mask for inverted dropout.

    Returns:
        Zeros with the given probability, rounded to 1/256; elsewhere the factor that keeps the mean at one.
    """
    threshold = min(max(round(probability * _LEVELS), 1), _LEVELS - 1)
    n = math.prod(shape)
    words = torch.empty(-(-n // 8), dtype=torch.int64, device=generator.device)
    draws = words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:n].view(shape)
    # Compared as floats: torch's comparison of bytes takes five times as long.
    return draws.to(torch.float32).ge_(threshold).mul_(_LEVELS / (_LEVELS - threshold))
