"""The self-test of a checkpoint: the same text and probabilities from whatever reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import self_test
from model.checkpoints.file_format import Checkpoint, load
from model.config import WeightPrecision
from model.errors import CheckpointError
from model.stepper.cpu import CpuStepper, Unsupported
from model.stepper.reference import ReferenceStepper
from tests.conftest import random_checkpoint


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_self_test_holds_for_the_same_weights_only(tmp_path: Path, cell: str) -> None:
    """The recorded text is generated again after a round trip, in float64 and by the stepper; other weights fail."""
    made = self_test.record(random_checkpoint(cell))
    assert len(made.self_test) == self_test.CHARS
    back = load(made.save(tmp_path))
    assert back.self_test == made.self_test
    self_test.verify_checkpoint(back)
    self_test.verify_stepper(ReferenceStepper(back.network(), 2), back)
    other = replace(random_checkpoint(cell, seed=1), self_test=made.self_test)
    with pytest.raises(CheckpointError, match=r"self-test: generated .*, expected .*, which its trainer recorded"):
        self_test.verify_checkpoint(other)
    with pytest.raises(CheckpointError, match=r"reference differs from the network .* nats per character, expected at"):
        self_test.verify_stepper(ReferenceStepper(other.network(), 2), back)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_native_stepper_is_compared_with_the_network(precision: WeightPrecision) -> None:
    """int8 weights may choose another character at a near tie, and still are within tolerance; other weights fail."""
    made, other = (self_test.record(random_checkpoint(seed=seed)) for seed in (0, 1))
    try:
        mine, foreign = (CpuStepper(c.network(), 1, precision) for c in (made, other))
    except Unsupported as e:
        pytest.skip(f"no native stepper here: {e}")
    self_test.verify_stepper(mine, made)
    assert not mine.read(0).any()
    with pytest.raises(CheckpointError, match=rf"the stepper {foreign.name} differs .* nats per character"):
        self_test.verify_stepper(foreign, made)


def test_a_checkpoint_without_a_self_test_passes(tiny: Checkpoint) -> None:
    """Files of versions that had none, and those made by hand."""
    assert tiny.self_test == ""
    self_test.verify_checkpoint(tiny)
    stepper = ReferenceStepper(tiny.network(torch.float32), 1)
    self_test.verify_stepper(stepper, tiny)
    assert not stepper.read(0).any()
