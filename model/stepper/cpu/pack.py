"""Pack a CharRNN's weights into the layout that stepper.c reads; for int8, round them as well.

Outputs come in panels of 32. Of a layer, a panel is 8 hidden units with their gates i, f, g, o; of the head, 32 ids.
A panel is two halves, each with its weights by k: fp32 [k][16], int8 [k/2][16][2]. Layers above the first have the
weights of their input (the h of the layer below), then those of their own h. The first layer's input is an id: its
product with the embedding and W_ih is a table, computed here once.

Everything is computed in float64 with additions in a fixed order (no BLAS), so two machines pack the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.config import WeightPrecision
from model.native.library import Unsupported
from model.network.char_rnn import CharRNN

PANEL = 32
UNITS = 8
MAX_TABLE_BYTES = 2**30
_INT32_MAX = 2**31 - 1

Array = NDArray[np.float64]
D = TypeVar("D", np.float32, np.int8)


@dataclass(frozen=True, slots=True)
class Packed:
    """The packed weights: one entry per layer, then the head."""

    weights: list[NDArray[np.float32] | NDArray[np.int8]]
    initial: list[NDArray[np.float32]]  # [0] (V, panels, 32), by id; others (panels, 32): where a sum begins
    scale: list[NDArray[np.float32]]  # int8: (panels, 32), what an integer sum is multiplied by; fp32: empty
    activation_scale: float  # int8: h times this, rounded, is the int16 activation; a power of two


def pack(network: CharRNN, precision: WeightPrecision) -> Packed:
    """Pack a network's weights.

    Raises:
        Unsupported: There is no native code for this cell or size.
        ValueError: A weight is not finite.
    """
    config = network.config
    if config.cell != "lstm":
        raise Unsupported(f"the native stepper runs lstm, this model is {config.cell}")
    padded = -(-config.n_hidden // UNITS) * UNITS
    table_bytes = config.vocab_size * padded * 16
    if table_bytes > MAX_TABLE_BYTES:
        raise Unsupported(
            f"the table of {config.vocab_size} characters by {config.n_hidden} units takes {table_bytes >> 20} MiB; "
            f"the native stepper stops at {MAX_TABLE_BYTES >> 20} MiB"
        )
    parameters = {name: _finite(name, t.detach().cpu().double().numpy()) for name, t in network.state_dict().items()}
    matrices: list[Array] = []  # (outputs, inputs), as trained
    biases: list[Array] = []  # (outputs,), of layers above the first and the head
    for layer in range(config.n_layers):
        recurrent = parameters[f"rnn.weight_hh_l{layer}"]
        if layer == 0:
            matrices.append(recurrent)
            continue
        matrices.append(np.concatenate([parameters[f"rnn.weight_ih_l{layer}"], recurrent], axis=1))
        biases.append(parameters[f"rnn.bias_ih_l{layer}"] + parameters[f"rnn.bias_hh_l{layer}"])
    matrices.append(parameters["head.weight"])
    biases.append(parameters["head.bias"])

    panelled = [_gate_panels(b[:, None])[:, 0] for b in biases[:-1]] + [_head_panels(biases[-1][:, None])[:, 0]]
    initial = [_first_layer_table(parameters), *[np.ascontiguousarray(b, dtype=np.float32) for b in panelled]]
    if precision == "fp32":
        panels = [_gate_panels(m) for m in matrices[:-1]] + [_head_panels(matrices[-1])]
        return Packed([_halves(x, np.float32) for x in panels], initial, [], 0.0)
    return _pack_int8(matrices, initial, config.n_hidden)


def _finite(name: str, values: Array) -> Array:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > np.finfo(np.float32).max:
        raise ValueError(f"{name}: not every weight is a finite float32")
    return values


def _gate_panels(matrix: Array) -> Array:
    """Gates (4H, K) -> (panels, K, 32), a panel's outputs ordered by gate, then unit; units past H are zeros."""
    units, k = matrix.shape[0] // 4, matrix.shape[1]
    panels = -(-units // UNITS)
    gates = np.zeros((4, panels * UNITS, k), matrix.dtype)
    gates[:, :units] = matrix.reshape(4, units, k)
    return gates.reshape(4, panels, UNITS, k).transpose(1, 3, 0, 2).reshape(panels, k, PANEL)


def _head_panels(matrix: Array) -> Array:
    """The head (V, K) -> (panels, K, 32); ids past V are zeros."""
    outputs, k = matrix.shape
    panels = -(-outputs // PANEL)
    padded = np.zeros((panels * PANEL, k), matrix.dtype)
    padded[:outputs] = matrix
    return padded.reshape(panels, PANEL, k).transpose(0, 2, 1)


def _halves(panels: Array, dtype: type[D]) -> NDArray[D]:
    """Panels (panels, K, 32, ...) -> halves (panels, 2, K, 16, ...)."""
    count, k, _, *rest = panels.shape
    return np.ascontiguousarray(panels.reshape(count, k, 2, PANEL // 2, *rest).swapaxes(1, 2), dtype=dtype)


def _first_layer_table(parameters: dict[str, Array]) -> NDArray[np.float32]:
    """Compute embedding @ W_ih^T + b_ih + b_hh, (V, panels, 32): a float64 sum each, in the order of the embedding."""
    embedding, matrix = parameters["embedding.weight"], parameters["rnn.weight_ih_l0"]  # (V, E), (4H, E)
    panelled = _gate_panels(matrix)  # (panels, E, 32)
    bias = _gate_panels((parameters["rnn.bias_ih_l0"] + parameters["rnn.bias_hh_l0"])[:, None])[:, 0]  # (panels, 32)
    table = np.empty((embedding.shape[0], *bias.shape), np.float32)
    n_ids = max(1, 2**22 // bias.size)  # at a time: bounds the float64 sums to 32 MB
    for first in range(0, len(table), n_ids):
        vectors = embedding[first : first + n_ids]
        total = np.broadcast_to(bias, (len(vectors), *bias.shape)).copy()
        for e in range(embedding.shape[1]):
            total += vectors[:, e, None, None] * panelled[None, :, e]
        table[first : first + n_ids] = total
    return table


def _pack_int8(matrices: list[Array], initial: list[NDArray[np.float32]], hidden: int) -> Packed:
    """Round each output's weights to multiples of 1/127 of its largest.

    All activations share one scale, the finest with which int32 sums cannot overflow: |h| <= 1, so a sum is at most
    activation_scale * (the sum of an output's |weights|). It is 2^14 or less, and depends on the weights alone, so it
    is the same for every row and batch.
    """
    steps = [np.abs(m).max(axis=1, keepdims=True) / 127 for m in matrices]
    steps = [np.where(s > 0, s, 1.0) for s in steps]
    rounded = [np.rint(m / s) for m, s in zip(matrices, steps, strict=True)]
    largest = max(float(np.abs(w).sum(axis=1).max()) for w in rounded)
    activation_scale = 2.0**14
    while activation_scale * largest > _INT32_MAX:
        activation_scale /= 2
    weights: list[NDArray[np.float32] | NDArray[np.int8]] = []
    scale = []
    for i, (w, s) in enumerate(zip(rounded, steps, strict=True)):
        to_panels = _head_panels if i + 1 == len(rounded) else _gate_panels
        segments = []  # each of x and h begins on a pair of its own
        for first in range(0, w.shape[1], hidden):
            segment = w[:, first : first + hidden]
            segments.append(np.pad(segment, ((0, 0), (0, hidden % 2))))
        panels = to_panels(np.concatenate(segments, axis=1))  # (panels, K, 32)
        pairs = panels.reshape(panels.shape[0], -1, 2, PANEL).swapaxes(2, 3)  # (panels, K / 2, 32, 2)
        weights.append(_halves(pairs, np.int8))
        scale.append(np.ascontiguousarray(to_panels(s / activation_scale)[:, 0], dtype=np.float32))
    return Packed(weights, initial, scale, activation_scale)
