"""What int8 weights cost a model, and which precision follows from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoints import file_format
from model.checkpoints.file_format import Checkpoint
from model.config import MAX_INT8_COST
from model.evaluation.quantization import int8_cost
from model.network.sampling import SamplingParams, as_batch
from model.stepper import Block
from model.stepper.cpu import CpuStepper
from tests.conftest import ALPHABET, random_checkpoint

pytestmark = pytest.mark.usefixtures("native_code")
STEPS, ROWS = 160, 16


def logprobs(checkpoint: Checkpoint, precision: str, forced_ids: np.ndarray) -> np.ndarray:
    """The log-probability of every id after each of these, (K, B, V): one run of the stepper for each id."""
    rows = forced_ids.shape[1]
    stepper = CpuStepper(checkpoint.network(), rows, precision)  # type: ignore[arg-type]
    every = []
    for id in range(len(ALPHABET)):
        for slot in range(rows):
            stepper.write(slot, None)
        every.append(stepper.run(block(forced_ids, np.full_like(forced_ids, id))).logprobs)
    stepper.close()
    return np.stack(every, axis=-1).astype(np.float64)


def block(forced_ids: np.ndarray, score_ids: np.ndarray | None = None) -> Block:
    steps, rows = forced_ids.shape
    return Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, steps, np.int32),
        forced_ids=forced_ids,
        random_values=np.random.default_rng(1).random((steps, rows)),
        sampling=as_batch([SamplingParams()] * rows),
        score_ids=score_ids,
    )


def own_text(checkpoint: Checkpoint) -> np.ndarray:
    """Text that the model itself generates, (B, K + 1) ids."""
    forced = np.full((STEPS, ROWS), -1, np.int32)
    forced[0] = 0
    stepper = CpuStepper(checkpoint.network(), ROWS)
    ids = stepper.run(block(forced)).ids
    stepper.close()
    return np.vstack([np.zeros((1, ROWS), np.int32), ids]).T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_estimate_is_the_divergence_of_the_two_distributions(seed: int) -> None:
    """Within a quarter of the Kullback-Leibler divergence, which is summed over every id at every place."""
    checkpoint = random_checkpoint(n_hidden=64, seed=seed)
    text = own_text(checkpoint).reshape(-1)
    ids = text[: (STEPS + 1) * ROWS]
    starts = (len(ids) - 1 - STEPS) * np.arange(ROWS) // (ROWS - 1)
    forced = ids[starts + np.arange(STEPS)[:, None]].astype(np.int32)
    exact, rounded = logprobs(checkpoint, "fp32", forced), logprobs(checkpoint, "int8", forced)
    divergence = float((np.exp(exact) * (exact - rounded)).sum(-1)[32:].mean())
    assert divergence > 1e-5
    assert int8_cost(checkpoint.network(), ids) == pytest.approx(divergence, rel=0.25)


def test_a_text_that_is_too_short_measures_nothing() -> None:
    assert int8_cost(random_checkpoint().network(), np.zeros(STEPS, np.int32)) is None


def test_a_model_that_the_native_stepper_cannot_run_measures_nothing() -> None:
    assert int8_cost(random_checkpoint(cell="gru").network(), np.zeros(2000, np.int32)) is None


@pytest.mark.parametrize(
    ("cost", "precision"), [(None, "fp32"), (0.0, "int8"), (MAX_INT8_COST, "int8"), (MAX_INT8_COST * 1.01, "fp32")]
)
def test_auto_is_int8_where_it_was_measured_to_cost_next_to_nothing(
    cost: float | None, precision: str, tmp_path: Path
) -> None:
    """The measurement is kept in the file; a choice of the operator stands above it."""
    checkpoint = file_format.load(replace(random_checkpoint(), int8_cost=cost).save(tmp_path))
    assert checkpoint.int8_cost == cost
    assert checkpoint.weight_precision() == precision
    assert checkpoint.weight_precision("fp32") == "fp32"
    assert checkpoint.weight_precision("int8") == "int8"
