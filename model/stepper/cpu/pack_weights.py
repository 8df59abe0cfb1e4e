"""Pack a CharRNN's weights into the layout that stepper.c reads; for int8, round them as well.

Outputs come in blocks of 16. Of a layer, four blocks are the gates i, f, g, o of 16 hidden units; of the head, a block
is 16 ids. A block has its weights by k: fp32 [k][16], int8 [k/4][16][4]; layers above the first have the weights of
their input (the layer below), then those of their own h. The first layer's input is an id: what the embedding and W_ih
make of it is a table, made here once.

Everything is computed in float64 with additions in a fixed order (no BLAS), so two machines pack the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import ModelConfig, WeightPrecision
from model.native.library import Unsupported
from model.network.char_rnn import CharRNN

BLOCK = 16
GATES = 4
MAX_TABLE_BYTES = 2**30
ACTIVATION_SCALE = 127  # as in kernels/simd.h
MAX_INT8_INPUTS = (2**31 - 1) // (2 * 255 * 127)

Array = NDArray[np.float64]
ARRAYS = ("weights", "initial", "scale")
"""Kinds of arrays of a packed network, by their numbers in lh_array; fp32 has no scale."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The packed weights: one entry per layer, then the head."""

    weights: list[NDArray[np.float32] | NDArray[np.int8]]
    initial: list[NDArray[np.float32]]  # [0] (V, blocks, 16), by id; others (blocks, 16): where a sum begins
    scale: list[NDArray[np.float32]]  # int8: (blocks, 16), what an integer sum is multiplied by; fp32: empty

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays by name."""
        lists: dict[str, Sequence[NDArray[Any]]] = {
            "weights": self.weights,
            "initial": self.initial,
            "scale": self.scale,
        }
        return {f"{kind}.{i}": array for kind, arrays in lists.items() for i, array in enumerate(arrays)}


FillArrays = Callable[[Mapping[str, memoryview]], None]
"""Fills memory with packed arrays, by their names in `Packed.arrays`."""


@dataclass(frozen=True, slots=True)
class PackedNetwork:
    """A network whose weights are packed already."""

    config: ModelConfig
    item_end: int | None
    precision: WeightPrecision
    packed: Packed | FillArrays

    @classmethod
    def of(cls, network: CharRNN, precision: WeightPrecision) -> PackedNetwork:
        """Pack a network; the errors are those of `pack`."""
        return cls(network.config, network.item_end, precision, pack(network, precision))


def pack(network: CharRNN, precision: WeightPrecision) -> Packed:
    """Pack a network's weights.

    Raises:
        Unsupported: There is no native code for this cell or size.
        ValueError: A weight is not finite.
    """
    config = network.config
    if config.cell != "lstm":
        raise Unsupported(f"the native stepper runs lstm, this model is {config.cell}")
    padded = -(-config.n_hidden // BLOCK) * BLOCK
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

    in_blocks = [_gate_blocks(b[:, None])[:, 0] for b in biases[:-1]] + [_head_blocks(biases[-1][:, None])[:, 0]]
    initial = [_first_layer_table(parameters), *[np.ascontiguousarray(b, dtype=np.float32) for b in in_blocks]]
    if precision == "fp32":
        blocks = [_gate_blocks(m) for m in matrices[:-1]] + [_head_blocks(matrices[-1])]
        return Packed([np.ascontiguousarray(b, dtype=np.float32) for b in blocks], initial, [])
    return _pack_int8(matrices, initial, config.n_hidden)


def _finite(name: str, values: Array) -> Array:
    if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > np.finfo(np.float32).max:
        raise ValueError(f"{name}: not every weight is a finite float32")
    return values


def _gate_blocks(matrix: Array) -> Array:
    """(4H, K) -> (blocks, K, 16): four blocks, the gates, for each 16 units; units past H are zeros."""
    units, k = matrix.shape[0] // GATES, matrix.shape[1]
    groups = -(-units // BLOCK)
    gates = np.zeros((GATES, groups * BLOCK, k), matrix.dtype)
    gates[:, :units] = matrix.reshape(GATES, units, k)
    return gates.reshape(GATES, groups, BLOCK, k).transpose(1, 0, 3, 2).reshape(groups * GATES, k, BLOCK)


def _head_blocks(matrix: Array) -> Array:
    """(V, K) -> (blocks, K, 16); ids past V are zeros."""
    outputs, k = matrix.shape
    blocks = -(-outputs // BLOCK)
    padded = np.zeros((blocks * BLOCK, k), matrix.dtype)
    padded[:outputs] = matrix
    return padded.reshape(blocks, BLOCK, k).transpose(0, 2, 1)


def _first_layer_table(parameters: dict[str, Array]) -> NDArray[np.float32]:
    """Compute embedding @ W_ih^T + b_ih + b_hh, (V, blocks, 16): a float64 sum each, in the order of the embedding."""
    embedding, matrix = parameters["embedding.weight"], parameters["rnn.weight_ih_l0"]  # (V, E), (4H, E)
    in_blocks = _gate_blocks(matrix)  # (blocks, E, 16)
    bias = _gate_blocks((parameters["rnn.bias_ih_l0"] + parameters["rnn.bias_hh_l0"])[:, None])[:, 0]  # (blocks, 16)
    table = np.empty((embedding.shape[0], *bias.shape), np.float32)
    n_ids = max(1, 2**22 // bias.size)  # at a time: bounds the float64 sums to 32 MB
    for first in range(0, len(table), n_ids):
        vectors = embedding[first : first + n_ids]
        total = np.broadcast_to(bias, (len(vectors), *bias.shape)).copy()
        for e in range(embedding.shape[1]):
            total += vectors[:, e, None, None] * in_blocks[None, :, e]
        table[first : first + n_ids] = total
    return table


def _pack_int8(matrices: list[Array], initial: list[NDArray[np.float32]], hidden: int) -> Packed:
    """Each output's weights in 127ths of its largest, so from -127 to 127. Activations are 127ths of 1, since |h| <= 1.

    A sum of K products is at most 255 * 127 * K, with the offset that an activation may have (kernels/simd.h).
    """
    if max(m.shape[1] for m in matrices) > MAX_INT8_INPUTS:
        raise Unsupported(f"int8 sums of more than {MAX_INT8_INPUTS} products may overflow; use fp32")
    steps = [np.abs(m).max(axis=1, keepdims=True) / 127 for m in matrices]
    steps = [np.where(s > 0, s, 1.0) for s in steps]
    weights: list[NDArray[np.float32] | NDArray[np.int8]] = []
    scale = []
    for i, (matrix, s) in enumerate(zip(matrices, steps, strict=True)):
        to_blocks = _head_blocks if i + 1 == len(matrices) else _gate_blocks
        whole = np.rint(matrix / s)
        segments = []  # each of x and h begins on four of its own
        for first in range(0, whole.shape[1], hidden):
            segments.append(np.pad(whole[:, first : first + hidden], ((0, 0), (0, -hidden % 4))))
        blocks = to_blocks(np.concatenate(segments, axis=1))  # (blocks, K, 16)
        fours = blocks.reshape(len(blocks), -1, 4, BLOCK).swapaxes(2, 3)  # (blocks, K / 4, 16, 4)
        weights.append(np.ascontiguousarray(fours, dtype=np.int8))
        scale.append(np.ascontiguousarray(to_blocks(s / ACTIVATION_SCALE)[:, 0], dtype=np.float32))
    return Packed(weights, initial, scale)
