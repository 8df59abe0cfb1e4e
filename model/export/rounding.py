"""The weights of a network rounded to 8 bits, as the native stepper rounds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.checkpoints.file_format import Checkpoint


@dataclass(frozen=True, slots=True)
class Rounded:
    """A rounded matrix: whole numbers (outputs, inputs), and what a whole number of each row is worth (outputs,)."""

    whole: NDArray[np.int8]
    steps: NDArray[np.float64]


def rounded_weights(checkpoint: Checkpoint) -> dict[str, Rounded]:
    """Return the matrices that int8 rounds, by name.

    As in model/stepper/cpu/pack_weights.py, a row has one step for all its inputs: of a layer above the first, those of
    the layer below and its own. What the first layer makes of a character stays exact.
    """
    weights = checkpoint.weights
    groups = [["rnn.weight_hh_l0"], ["head.weight"]]
    groups += [[f"rnn.weight_{kind}_l{n}" for kind in ("ih", "hh")] for n in range(1, checkpoint.config.n_layers)]
    result = {}
    for names in groups:
        matrices = [weights[name].double().numpy() for name in names]
        steps = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0) / 127
        steps = np.where(steps > 0, steps, 1.0)
        for name, matrix in zip(names, matrices, strict=True):
            result[name] = Rounded(np.rint(matrix / steps[:, None]).astype(np.int8), steps)
    return result
