"""Lay a network's weights out for the kernels: those of model/stepper/cpu/pack_weights.py, in a GPU's order.

A panel is 64 outputs: of a layer, the four gates of 16 units; of the head, 64 ids. Each step of a sum has 64 words of a
panel: a word is one float, or four int8. The steps of each input (the layer below, then the layer's own h) are padded
with zeros to a multiple of 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import WeightPrecision
from model.network.char_rnn import CharRNN
from model.stepper.cpu.pack_weights import BLOCK
from model.stepper.cpu.pack_weights import pack as pack_for_cpu

PANEL = 64
STEPS = 64
GATES = 4
UNITS = PANEL // GATES

Words = NDArray[np.uint32]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Packed:
    """One entry per layer, then the head."""

    weights: list[Words]  # (panels, steps, 64)
    initial: list[Floats]  # [0]: (V, panels, 64), by id; others: (panels, 64)
    scale: list[Floats]  # int8: (panels, 64); fp32: empty


def pack(network: CharRNN, precision: WeightPrecision) -> Packed:
    """Pack a network's weights.

    Raises:
        Unsupported: The kernels do not run this cell or size.
        ValueError: A weight is not finite.
    """
    packed = pack_for_cpu(network, precision)
    is_int8 = precision == "int8"
    head = len(packed.weights) - 1
    orders = [_ids() if i == head else _gates(is_int8) for i in range(head + 1)]
    steps = -(-network.config.n_hidden // 4) if is_int8 else network.config.n_hidden
    return Packed(
        [_weights(w, steps, order) for w, order in zip(packed.weights, orders, strict=True)],
        [_outputs(v, order) for v, order in zip(packed.initial, orders, strict=True)],
        [_outputs(v, order) for v, order in zip(packed.scale, orders[: len(packed.scale)], strict=True)],
    )


def _ids() -> NDArray[np.intp]:
    return np.arange(PANEL)


def _gates(is_int8: bool) -> NDArray[np.intp]:
    """For each place in a panel, its place in the CPU's order, gate * 16 + unit.

    fp32: the four gates of a unit, unit by unit. int8: as the matrix products of eight outputs want it, so that a
    thread gets two gates of its unit from one product and two from the next.
    """
    n = np.arange(PANEL)
    if is_int8:
        unit, gate = n // 16 * 4 + n % 8 // 2, n // 8 % 2 * 2 + n % 2
    else:
        unit, gate = n // GATES, n % GATES
    return gate * UNITS + unit


def _weights(blocks: NDArray[Any], steps: int, order: NDArray[np.intp]) -> Words:
    """The CPU's (blocks, steps of all inputs, 16 words) -> (panels, padded steps, 64)."""
    words = np.ascontiguousarray(blocks).view(np.uint32)
    words = words.reshape(len(blocks), -1, BLOCK)  # (blocks, inputs * steps, 16)
    words = _whole_panels(words)
    panels, inputs = len(words) // GATES, words.shape[1] // steps
    words = words.reshape(panels, GATES, inputs, steps, BLOCK).transpose(0, 2, 3, 1, 4)
    words = words.reshape(panels, inputs, steps, PANEL)[..., order]
    words = np.pad(words, ((0, 0), (0, 0), (0, -steps % STEPS), (0, 0)))
    return np.ascontiguousarray(words.reshape(panels, -1, PANEL))


def _outputs(values: Floats, order: NDArray[np.intp]) -> Floats:
    """The CPU's (..., blocks, 16) -> (..., panels, 64)."""
    values = np.moveaxis(_whole_panels(np.moveaxis(values, -2, 0)), 0, -2)
    return np.ascontiguousarray(values.reshape(*values.shape[:-2], -1, PANEL)[..., order])


def _whole_panels(blocks: NDArray[Any]) -> NDArray[Any]:
    """Add blocks of zeros until there are whole panels."""
    return np.pad(blocks, ((0, -len(blocks) % GATES), *((0, 0),) * (blocks.ndim - 1)))
