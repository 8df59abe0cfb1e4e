"""Bias and penalties: what they do to logits, and the windows that they depend on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoints.file_format import Checkpoint
from model.network.penalties import (
    NO_CHARACTER,
    LogitBias,
    adjusted_logits,
    advance_window,
    new_window,
    prompt_codes,
    stack_windows,
)
from model.network.sampling import SamplingParams, as_batch, as_tensors
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.cuda import CudaStepper
from model.stepper.generate import generate, write
from model.stepper.reference import ReferenceStepper
from tests.conftest import ALPHABET
from tests.cuda_emulator import EmulatedGpu

VOCAB = 6
PARAMS = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -1.0]),
    presence_penalty=st.sampled_from([0.0, 0.5, -2.0]),
    penalty_window=st.integers(1, 12),
)
CODES = st.lists(st.integers(-1 - VOCAB, VOCAB - 1), max_size=20)


@given(
    logits=st.lists(st.floats(-9, 9, width=32), min_size=VOCAB, max_size=VOCAB),
    codes=CODES,
    params=PARAMS,
    bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100)),
    other=CODES,
)
@settings(max_examples=300)
def test_logits_change_as_the_definition_says(
    logits: list[float], codes: list[int], params: SamplingParams, bias: dict[int, float], other: list[int]
) -> None:
    """Bias, then division or multiplication, then the two subtractions; another row in the batch changes nothing."""
    expected = []
    window = codes[-params.penalty_window :]
    for id, start in enumerate(logits):
        logit = start + bias.get(id, 0.0)
        generated, read = window.count(id), window.count(-2 - id)
        if generated + read:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * generated
        logit -= params.presence_penalty if generated else 0.0
        expected.append(np.float32(logit))
    rows = [np.array(row, np.int32) for row in (codes, other)]
    stacked = stack_windows(rows)
    biases = LogitBias.of([bias, {0: 3.0}])
    assert biases is not None
    adjusted = adjusted_logits(
        torch.tensor([logits] * 2),
        None if stacked is None else torch.from_numpy(stacked.astype(np.int64)),
        torch.from_numpy(biases.dense(2, VOCAB)),
        as_tensors(as_batch([params, SamplingParams(presence_penalty=1)])),
    )
    assert np.array_equal(adjusted[0].numpy(), np.array(expected, np.float32))  # 0.0 and -0.0 are one value


@given(params=PARAMS, before=CODES, sampled=st.lists(st.integers(0, VOCAB - 1), max_size=30), cut=st.integers(0, 30))
def test_a_window_is_the_same_however_the_text_was_cut(
    params: SamplingParams, before: list[int], sampled: list[int], cut: int
) -> None:
    """What was sampled at once, or in two parts with the window stored in between."""
    ids = np.array(sampled, np.int32)
    window = new_window(params, np.array(before, np.int32))
    whole = advance_window(params, window, ids)
    half = advance_window(params, window, ids[:cut])
    assert advance_window(params, new_window(params, half), ids[cut:]).tolist() == whole.tolist()
    assert len(whole) <= params.penalty_window
    assert params.has_penalties or not len(whole)


def test_stacked_windows_end_together() -> None:
    """Shorter windows are filled at the beginning; rows of a bias keep their entries."""
    stacked = stack_windows([np.array([1, 2], np.int32), np.array([], np.int32), prompt_codes(np.array([0]))])
    assert stacked is not None
    assert stacked.tolist() == [[1, 2], [NO_CHARACTER, NO_CHARACTER], [NO_CHARACTER, -2]]
    assert stack_windows([np.array([], np.int32)] * 2) is None
    biases = LogitBias.of([{1: 2.0}, {}, {0: -1.0, 4: 5.0}])
    assert biases is not None
    assert biases.rows(np.array([2, 1])).dense(2, 5).tolist() == [[-1, 0, 0, 0, 5], [0] * 5]
    assert LogitBias.of([{}, {}]) is None


CASES = [
    (SamplingParams(0.0, repetition_penalty=1.4), {}),
    (SamplingParams(0.8, 5, frequency_penalty=0.6, penalty_window=9), {}),
    (SamplingParams(1.0, 0, 0.9, presence_penalty=1.5, penalty_window=200), {"e": -100.0, "a": 2.0}),
    (SamplingParams(1.0, typical_p=0.7, repetition_penalty=0.8, frequency_penalty=-0.2), {" ": 1.0}),
    (SamplingParams(0.0), {"e": -100.0, " ": -100.0}),
]


PlainText = Callable[[SamplingParams, dict[str, float]], str]


@pytest.fixture(scope="module")
def plain_text(tiny: Checkpoint) -> PlainText:
    """The text of the plain loop, written once for all kinds of steppers."""
    network = tiny.network(torch.float64)

    @cache
    def text(params: SamplingParams, bias: tuple[tuple[str, float], ...]) -> str:
        return generate(network, ALPHABET, "hello is it", 300, params, seed=3, logit_bias=dict(bias)).text

    return lambda params, bias: text(params, tuple(bias.items()))


@pytest.mark.parametrize("kind", ["reference", "native", "cuda"])
@pytest.mark.parametrize(("params", "bias"), CASES)
def test_every_stepper_writes_what_the_plain_loop_writes(
    tiny: Checkpoint,
    plain_text: PlainText,
    kind: str,
    params: SamplingParams,
    bias: dict[str, float],
    native_code: None,
    emulated_gpu: EmulatedGpu,
) -> None:
    """In blocks of any length, longer than a GPU's buffers, too; and a bias of -100 excludes."""
    network = tiny.network(torch.float64)
    expected = plain_text(params, bias)
    if kind == "reference":
        stepper: Stepper = ReferenceStepper(network, 1, torch.float64)
    elif kind == "native":
        stepper = CpuStepper(tiny.network(), 1)
    else:
        stepper = CudaStepper(tiny.network(), 1)
    for block_steps in (1, 7, 320):
        text = write(stepper, ALPHABET, "hello is it", 300, params, 3, block_steps, logit_bias=bias)
        assert "".join(text) == expected
    assert not any(character in expected for character, value in bias.items() if value == -100)
    assert expected != plain_text(SamplingParams(params.temperature), {})
