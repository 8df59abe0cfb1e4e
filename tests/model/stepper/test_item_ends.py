"""A network of a list forgets at the end of each item: in torch, in C and on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelConfig, WeightPrecision
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.cuda import CudaStepper
from model.stepper.reference import ReferenceStepper

END, VOCAB, SLOTS = 3, 7, 6


def network(item_end: int | None = END) -> CharRNN:
    """A small network with large weights, so that each row has ends at other places."""
    torch.manual_seed(4)
    made = CharRNN(ModelConfig(VOCAB, n_hidden=24, n_layers=2, n_embed=8)).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.mul_(3)
    made.item_end = item_end
    return made


def steppers(precision: WeightPrecision = "fp32") -> list[Stepper]:
    """The reference, and the native stepper with one and two threads."""
    return [ReferenceStepper(network(), SLOTS), *(CpuStepper(network(), SLOTS, precision, threads=n) for n in (1, 2))]


def sampled(stepper: Stepper, steps: int = 120, seeds: range = range(SLOTS)) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities (K, B) of rows that begin with an end."""
    rows = len(seeds)
    forced = np.full((steps, rows), SAMPLE, np.int32)
    forced[0] = END
    result = stepper.run(
        Block(
            slots=np.arange(rows, dtype=np.int32),
            steps=np.full(rows, steps, np.int32),
            forced_ids=forced,
            random_values=random_values(seeds, [0] * rows, steps),
            sampling=as_batch([SamplingParams()] * rows),
        )
    )
    return result.ids, result.logprobs


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_item_is_as_probable_after_others_as_alone(precision: WeightPrecision) -> None:
    """Bit for bit: the log-probabilities of an item inside a row are those of a row that has only this item."""
    native = CpuStepper(network(), SLOTS, precision)
    ids, logprobs = sampled(native)
    n_items = 0
    for row in range(SLOTS):
        ends = np.flatnonzero(ids[:, row] == END)
        for before, end in zip([-1, *ends[:-1].tolist()], ends.tolist(), strict=True):
            item = ids[before + 1 : end + 1, row]
            fed = np.array([END, *item[:-1]], np.int32)[:, None]
            native.write(0, np.ones(native.state_shape, np.float32))  # what the state was does not matter
            alone = native.run(
                Block(
                    slots=np.zeros(1, np.int32),
                    steps=np.array([len(item)], np.int32),
                    forced_ids=fed,
                    random_values=np.zeros((len(item), 1)),
                    sampling=as_batch([SamplingParams()]),
                    score_ids=item[:, None].astype(np.int32),
                )
            )
            assert np.array_equal(alone.logprobs[:, 0], logprobs[before + 1 : end + 1, row])
            n_items += 1
    assert n_items > 30


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("rows", [8, 17, 40, 70])
def test_rows_that_forget_beside_others(precision: WeightPrecision, rows: int) -> None:
    """Bit for bit as alone, also where many rows are multiplied together and others go on; and so are their states."""
    together, alone = CpuStepper(network(), rows, precision), CpuStepper(network(), 1, precision)
    ids, logprobs = sampled(together, seeds=range(rows))
    assert (ids == END).any()
    assert not (ids == END).all(axis=1).any()
    for row in range(rows):
        own_ids, own_logprobs = sampled(alone, seeds=range(row, row + 1))
        assert np.array_equal(own_ids[:, 0], ids[:, row])
        assert np.array_equal(own_logprobs[:, 0], logprobs[:, row])
        assert np.array_equal(alone.read(0), together.read(row))


@pytest.mark.usefixtures("native_code", "emulated_gpu")
def test_every_stepper_forgets_alike() -> None:
    """The reference, the native stepper and a GPU's draw the same; without the reset they draw others."""
    (expected, logprobs), *others = [sampled(stepper) for stepper in [*steppers(), CudaStepper(network(), SLOTS)]]
    for ids, own in others:
        assert np.array_equal(ids, expected)
        assert np.allclose(own, logprobs, atol=1e-4)
    assert not np.array_equal(sampled(CpuStepper(network(None), SLOTS))[0], expected)


def test_a_window_of_several_items_is_read_like_each_alone() -> None:
    """The network's own forward pass resets rows inside a window; where no item begins it carries the state."""
    made, ids = network(), torch.randint(VOCAB, (4, 30))
    ids[0], ids[1, 0] = 1, END
    state = tuple(torch.randn(2, 4, 24) for _ in range(2))
    whole, after = made(ids, state)
    for row in range(4):
        now = tuple(s[:, row : row + 1] for s in state)
        for t in range(30):
            if int(ids[row, t]) == END:
                now = made.zero_state(1)
            logits, now = made._read(ids[row : row + 1, t : t + 1], now)
            assert torch.allclose(logits[0, 0], whole[row, t], atol=1e-5)
        for ours, theirs in zip(after, now, strict=True):
            assert torch.allclose(ours[:, row], theirs[:, 0], atol=1e-5)
