"""The GPU stepper: its graphs' body on the CPU against the oracle; with a GPU, the graphs themselves."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from model.checkpoints.file_format import Checkpoint
from model.config import Cell
from model.network.sampling import SamplingParams, as_batch
from model.stepper import NO_SCORE, SAMPLE, Block, Stepper
from model.stepper.choose import choose
from model.stepper.cuda import CudaStepper
from model.stepper.cuda.body import CAPACITY
from model.stepper.generate import generate, write
from model.stepper.reference import TILE, ReferenceStepper
from tests.conftest import ALPHABET, random_checkpoint
from tests.random_batching import VariantStepper, random_texts, variant_texts

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: CUDA graphs cannot be captured")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_every_text_is_the_same_alone_and_in_random_batches(cell: Cell, device: str) -> None:
    """Batch invariance: joins, leaves, cuts, cancels, the number of tiles and the blocks' lengths change no bit."""
    rng = Random(2)
    network = random_checkpoint(cell).network()
    batched, single = (CudaStepper(network, n, device, tile=8) for n in (40, 1))
    assert variant_texts(batched, single, random_texts(rng, 60, len(ALPHABET)), rng, k=5) == []


@pytest.mark.parametrize("device", DEVICES)
def test_the_harness_notices_a_stepper_that_is_not_invariant(tiny: Checkpoint, device: str) -> None:
    """The negative control of the test above."""
    rng = Random(2)
    batched, single = (CudaStepper(tiny.network(), n, device, tile=8) for n in (40, 1))
    assert variant_texts(VariantStepper(batched), single, random_texts(rng, 60, len(ALPHABET)), rng, k=5) != []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    "params", [SamplingParams(), SamplingParams(0.0), SamplingParams(1.3, 5, 0.9, 0.01), SamplingParams(0.5, 0, 0.8)]
)
def test_equals_the_plain_loop(cell: Cell, params: SamplingParams, device: str) -> None:
    """In float64 the text is that of the plain loop over the network, filtered or not, K on all sides of 16."""
    network = random_checkpoint(cell).network(torch.float64)
    for block in (1, 15, 16, 17, 40):
        stepper = CudaStepper(network, 1, device, torch.float64, tile=4)
        written = "".join(write(stepper, ALPHABET, "to be or", 60, params, 9, block))
        assert written == generate(network, ALPHABET, "to be or", 60, params, 9).text


def test_the_body_gives_the_bits_of_the_reference(tiny: Checkpoint) -> None:
    """With tiles of its size, on its device, a block's ids, log-probabilities and states are the reference's."""
    reference = ReferenceStepper(tiny.network(), 40)
    body = CudaStepper(tiny.network(), 40, "cpu", tile=TILE)
    for stepper in (reference, body):
        mixed_block(stepper)
    first, second = mixed_block(reference), mixed_block(body)
    assert first == second


def mixed_block(stepper: Stepper, rows: int = 23, steps: int = 21) -> tuple[bytes, ...]:
    """Rows with prompts of all lengths, fewer steps than the block, and differing parameters."""
    rng = np.random.default_rng(5)
    forced_ids = np.full((steps, rows), SAMPLE, np.int32)
    for b in range(rows):
        read = rng.integers(1, steps + 1)
        forced_ids[:read, b] = rng.integers(0, len(ALPHABET), read)
    row_steps = rng.integers(1, steps + 1, rows).astype(np.int32)
    row_steps[0] = steps
    result = stepper.run(
        Block(
            slots=rng.permutation(40)[:rows].astype(np.int32),
            steps=row_steps,
            forced_ids=forced_ids,
            random_values=rng.random((steps, rows)),
            sampling=as_batch(
                SamplingParams(t, k, p, m)
                for t, k, p, m in zip(
                    rng.choice([0.0, 0.7, 1.0], rows).tolist(),
                    rng.choice([0, 3], rows).tolist(),
                    rng.choice([0.9, 1.0], rows).tolist(),
                    rng.choice([0.0, 0.05], rows).tolist(),
                    strict=True,
                )
            ),
        )
    )
    counted = np.arange(steps)[:, None] < row_steps
    states = [stepper.read(slot).tobytes() for slot in range(40)]
    return np.where(counted, result.ids, 0).tobytes(), np.where(counted, result.logprobs, 0).tobytes(), *states


@pytest.mark.parametrize("device", DEVICES)
def test_a_block_longer_than_the_buffers_is_the_same(tiny: Checkpoint, device: str) -> None:
    """Blocks past CAPACITY steps are cut inside, in prompts, in texts and between: nothing of it shows."""
    steps = 2 * CAPACITY + 30
    rng = np.random.default_rng(1)
    reads, lengths = [1, CAPACITY, CAPACITY + 1, steps, 300], [steps, CAPACITY, CAPACITY + 1, steps, 40]
    forced_ids = np.full((steps, 5), SAMPLE, np.int32)
    for b, read in enumerate(reads):
        forced_ids[:read, b] = rng.integers(0, len(ALPHABET), read)
    block = Block(
        slots=np.arange(5, dtype=np.int32), steps=np.array(lengths, np.int32), forced_ids=forced_ids,
        random_values=rng.random((steps, 5)), sampling=as_batch([SamplingParams()] * 5),
        score_ids=np.where(rng.random((steps, 5)) < 0.1, 3, NO_SCORE).astype(np.int32),
    )  # fmt: skip
    network = tiny.network(torch.float64)
    ours, theirs = CudaStepper(network, 5, device, torch.float64, 8), ReferenceStepper(network, 5, torch.float64)
    got, expected = ours.run(block), theirs.run(block)
    for b, n in enumerate(lengths):
        assert (got.ids[:n, b] == expected.ids[:n, b]).all()
        assert np.allclose(got.logprobs[:n, b], expected.logprobs[:n, b], equal_nan=True)
        assert np.allclose(ours.read(b), theirs.read(b))


@needs_gpu
def test_a_gpu_gets_the_graphs(tiny: Checkpoint) -> None:
    """choose takes them for a GPU, and says so."""
    stepper, why = choose(tiny.network(), 4, "cuda")
    assert (stepper.name, why) == ("cuda", "CUDA graphs")
