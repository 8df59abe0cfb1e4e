"""The reference stepper: batch invariance, the plain loop, and what a block means."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper import Block, BlockResult, Interrupt
from model.stepper.generate import generate, write
from model.stepper.reference import ReferenceStepper
from tests.conftest import ALPHABET, random_checkpoint
from tests.random_batching import random_texts, run_alone, variant_texts


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("seed", range(3))
def test_every_text_is_the_same_alone_and_in_random_batches(cell: str, seed: int) -> None:
    """Batch invariance in float32: joins, leaves, cuts and block lengths change no bit of a text or its state."""
    rng = Random(seed)
    stepper = ReferenceStepper(random_checkpoint(cell).network(), n_slots=40)
    assert variant_texts(stepper, stepper, random_texts(rng, 60, len(ALPHABET)), rng, k=5) == []


def test_the_harness_notices_a_stepper_that_is_not_invariant(tiny: Checkpoint) -> None:
    """The negative control: a row that depends on the size of its batch, by a millionth, is noticed."""

    class DependsOnBatchSize(ReferenceStepper):
        def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
            bias = self._layers.head_bias
            self._layers.head_bias = bias * (1 + 1e-6 * len(block.slots))
            try:
                return super().run(block, n_cores, interrupt)
            finally:
                self._layers.head_bias = bias

    rng = Random(0)
    stepper = DependsOnBatchSize(tiny.network(), n_slots=40)
    stepper._layers.head_bias += 1
    assert variant_texts(stepper, stepper, random_texts(rng, 60, len(ALPHABET)), rng, k=5) != []


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@settings(max_examples=15, deadline=None)
@given(
    prompt=st.text(st.sampled_from(ALPHABET.characters), max_size=12),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    block=st.integers(1, 40),
)
def test_equals_the_plain_loop(
    cell: str, prompt: str, seed: int, temperature: float, top_k: int, top_p: float, block: int
) -> None:
    """In float64, blocks of any length draw the text of the plain one-character loop over the network."""
    network = random_checkpoint(cell).network(torch.float64)
    params = SamplingParams(temperature, top_k, top_p)
    stepper = ReferenceStepper(network, 1, torch.float64)
    written = "".join(write(stepper, ALPHABET, prompt, 30, params, seed, block))
    assert written == generate(network, ALPHABET, prompt, 30, params, seed).text


def test_a_freed_slot_leaks_nothing(tiny: Checkpoint) -> None:
    """A slot that is reused for another text does not depend on the text before."""
    stepper = ReferenceStepper(tiny.network(), n_slots=1)
    first, second = random_texts(Random(4), 2, len(ALPHABET))
    fresh = run_alone(ReferenceStepper(tiny.network(), n_slots=1), second)
    run_alone(stepper, first)
    after = run_alone(stepper, second)
    assert after.ids == fresh.ids
    assert after.state is not None
    assert fresh.state is not None
    assert np.array_equal(after.state, fresh.state)
