"""What int8 weights cost a model: the loss that they add, measured by the native stepper."""

from __future__ import annotations

import numpy as np

from model.config import WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import Block
from model.stepper.cpu import CpuStepper, Unsupported
from model.text.corpus import Ids

_ROWS = 16
_STEPS = 160
_WARM_UP = 32  # characters of each row that do not count: a state near zero is easier to round


def int8_cost(network: CharRNN, ids: Ids) -> float | None:
    """Estimate the loss that int8 weights add, in nats per character.

    The loss that they add to text from the model itself is the Kullback-Leibler divergence of the two distributions.
    It is half the variance of the difference of their log-probabilities, to second order, and that variance needs few
    characters: the mean difference has a far larger error for as many.

    Args:
        network: The model, in float32 on the CPU.
        ids: A text that it was not trained on, (N,), of which at most 2,560 characters are read.

    Returns:
        The estimate; None where the native stepper cannot run the model or the text is too short.
    """
    rows = min(_ROWS, (len(ids) - 1) // _STEPS)
    if rows == 0:
        return None
    starts = (len(ids) - 1 - _STEPS) * np.arange(rows) // max(1, rows - 1)
    positions = starts + np.arange(_STEPS)[:, None]  # (K, B)
    block = Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, _STEPS, np.int32),
        forced_ids=np.asarray(ids[positions], np.int32),
        random_values=np.zeros(positions.shape),
        sampling=as_batch([SamplingParams(temperature=0)] * rows),
        score_ids=np.asarray(ids[positions + 1], np.int32),
    )
    try:
        exact, rounded = (_logprobs(network, block, precision) for precision in ("fp32", "int8"))
    except Unsupported:
        return None
    return float(np.var((exact - rounded)[_WARM_UP:], dtype=np.float64)) / 2


def _logprobs(network: CharRNN, block: Block, precision: WeightPrecision) -> np.ndarray:
    stepper = CpuStepper(network, len(block.slots), precision)
    try:
        return stepper.run(block).logprobs
    finally:
        stepper.close()
