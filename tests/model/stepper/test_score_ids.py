"""The log-probabilities of given ids: what every stepper reports of a text that it is fed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch
from model.stepper import NO_SCORE, SAMPLE, Block, Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.cuda import CudaStepper
from model.stepper.reference import ReferenceStepper
from tests.conftest import ALPHABET, random_checkpoint

ROWS, STEPS = 19, 33
V = len(ALPHABET)
STEPPERS: dict[str, tuple[Callable[[CharRNN], Stepper], float]] = {  # and how close to the float64 network it must be
    "reference": (lambda network: ReferenceStepper(network, ROWS, torch.float64), 1e-6),
    "cpu-f32": (lambda network: CpuStepper(network, ROWS, "fp32"), 1e-5),
    "cpu-i8": (lambda network: CpuStepper(network, ROWS, "int8"), 0.1),
    "cuda-f32": (lambda network: CudaStepper(network, ROWS, "fp32"), 1e-5),
    "cuda-i8": (lambda network: CudaStepper(network, ROWS, "int8"), 0.1),
}
pytestmark = pytest.mark.usefixtures("native_code", "emulated_gpu")


def block(forced_ids: np.ndarray, score_ids: np.ndarray | None, params: SamplingParams) -> Block:
    steps, rows = forced_ids.shape
    return Block(
        slots=np.arange(rows, dtype=np.int32),
        steps=np.full(rows, steps, np.int32),
        forced_ids=forced_ids.astype(np.int32),
        random_values=np.random.default_rng(2).random((steps, rows)),
        sampling=as_batch([params] * rows),
        score_ids=None if score_ids is None else score_ids.astype(np.int32),
    )


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(0.0), SamplingParams(0.7, 3, 0.8, 0.05)])
def test_forced_ids_are_scored_as_by_the_float64_network(name: str, params: SamplingParams) -> None:
    """Any id's log-probability at any step is the network's at temperature 1, whatever the sampling parameters."""
    make, tolerance = STEPPERS[name]
    network, rng = random_checkpoint("lstm").network(torch.float64), np.random.default_rng(1)
    fed, scored = rng.integers(0, V, (STEPS, ROWS)), rng.integers(0, V, (STEPS, ROWS))
    scored[:-1, ::2] = fed[1:, ::2]  # the id that follows, in every other row; any id in the rest
    with torch.no_grad():
        logits, _ = network(torch.tensor(fed.T), network.zero_state(ROWS))
    logprobs = torch.log_softmax(logits, dim=-1).numpy()  # (B, K, V)
    expected = np.take_along_axis(logprobs, scored.T[..., None], axis=2)[..., 0].T
    result = make(network).run(block(fed, scored, params))
    assert np.abs(result.logprobs - expected).max() < tolerance
    assert (result.ids[:-1] == fed[1:]).all()


@pytest.mark.parametrize("name", STEPPERS)
def test_scoring_changes_nothing_but_the_requested_logprobs(name: str) -> None:
    """Ids, states and all other log-probabilities are the same bits, in prompts and where ids are sampled."""
    make, _ = STEPPERS[name]
    network, rng = random_checkpoint("lstm").network(torch.float64), np.random.default_rng(3)
    fed = rng.integers(0, V, (STEPS, ROWS))
    fed[np.arange(STEPS)[:, None] > rng.integers(0, STEPS, ROWS)] = SAMPLE
    scored = np.where(rng.random((STEPS, ROWS)) < 0.3, rng.integers(0, V, (STEPS, ROWS)), NO_SCORE)
    one, other = make(network), make(network)
    plain = one.run(block(fed, None, SamplingParams(0.9, 4)))
    with_scores = other.run(block(fed, scored, SamplingParams(0.9, 4)))
    assert (plain.ids == with_scores.ids).all()
    assert np.array_equal(plain.logprobs[scored == NO_SCORE], with_scores.logprobs[scored == NO_SCORE], equal_nan=True)
    assert not np.isnan(with_scores.logprobs[scored != NO_SCORE]).any()
    for slot in range(ROWS):
        assert one.read(slot).tobytes() == other.read(slot).tobytes()
    sampled = ~np.isnan(plain.logprobs)
    assert sampled.any()
    again = make(network).run(block(fed, np.where(sampled, plain.ids, NO_SCORE), SamplingParams(0.9, 4)))
    assert plain.logprobs.tobytes() == again.logprobs.tobytes()  # a sampled id's score is what sampling reports
