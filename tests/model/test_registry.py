"""The folder of checkpoints: what is listed, what comes in, what is kept, and that a model still is what was judged."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import registry, self_test
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import promote, promoted_path, promotion_history, roll_back
from model.errors import CheckpointError
from model.stepper.cpu import CpuStepper, Precision, Unsupported
from model.stepper.reference import ReferenceStepper
from tests.conftest import random_checkpoint


def aged(path: Path, age_s: float) -> Path:
    """The same file, older."""
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))
    return path


def test_the_listing_says_what_each_file_is(tmp_path: Path, tiny: Checkpoint) -> None:
    """Header fields of whole files, which is promoted and which came before; a broken file is listed with its error."""
    first, second = aged(tiny.save(tmp_path), 20), aged(random_checkpoint(seed=1).save(tmp_path), 10)
    promote(first)
    promote(second)
    (tmp_path / "broken.safetensors").write_bytes(b"abc")
    broken, newest, oldest = registry.list_checkpoints(tmp_path)
    assert "not a complete safetensors file" in broken["error"]
    assert (newest["name"], newest["promoted"], newest["predecessor"]) == (second.name, True, False)
    assert (oldest["id"], oldest["promoted"], oldest["predecessor"]) == (tiny.fingerprint, False, True)
    assert oldest["val_loss"] == tiny.val_loss
    assert oldest["network"]["n_parameters"] == tiny.config.n_parameters
    assert registry.find(tmp_path, tiny.fingerprint) == first
    assert registry.find(tmp_path, "0" * 16) is None


def test_a_roll_back_undoes_a_promotion(tmp_path: Path) -> None:
    """Once: the predecessor; twice: the one before it; then there is none. Files that are gone are passed over."""
    paths = [random_checkpoint(seed=i).save(tmp_path) for i in range(4)]
    for path in paths:
        promote(path)
    assert roll_back(tmp_path) == paths[2] == promoted_path(tmp_path)
    paths[1].unlink()
    assert roll_back(tmp_path) == paths[0]
    with pytest.raises(CheckpointError, match="no earlier promotion exists"):
        roll_back(tmp_path)
    assert promoted_path(tmp_path) == paths[0]


def test_pruning_keeps_the_newest_the_promoted_and_its_predecessor(tmp_path: Path) -> None:
    """By count, never what is served nor what a roll-back needs."""
    paths = [aged(random_checkpoint(seed=i).save(tmp_path), 100 - i) for i in range(6)]
    promote(paths[0])
    promote(paths[1])
    assert set(registry.prune(tmp_path, keep=2)) == {paths[2].name, paths[3].name}
    assert set(registry.checkpoint_paths(tmp_path)) == {paths[0], paths[1], paths[4], paths[5]}
    assert promotion_history(tmp_path) == [paths[1].name, paths[0].name]


def test_a_model_that_comes_in_takes_nobodys_name(tmp_path: Path, tiny: Checkpoint) -> None:
    """The same model again is the same file; another model of the same name gets a name of its own."""
    store = tmp_path / "store"
    first = registry.register(tiny.save(tmp_path / "a"), store)
    assert registry.register(tmp_path / "a" / first.name, store) == first
    other = replace(random_checkpoint(seed=5), val_loss=tiny.val_loss)
    second = registry.register(other.save(tmp_path / "b"), store)
    assert second.name == f"{first.stem}-{other.fingerprint[:8]}.safetensors"
    assert load(first).fingerprint == tiny.fingerprint
    assert load(second).fingerprint == other.fingerprint
    assert not list(store.glob(".*"))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_self_test_holds_for_the_same_weights_only(tmp_path: Path, cell: str) -> None:
    """What the trainer recorded is written again after a round trip, by float64 and by the stepper; not by others."""
    made = self_test.with_self_test(random_checkpoint(cell))
    assert len(made.self_test) == self_test.CHARS
    back = load(made.save(tmp_path))
    assert back.self_test == made.self_test
    self_test.check(back)
    self_test.warm(ReferenceStepper(back.network(), 2), back)
    other = replace(random_checkpoint(cell, seed=1), self_test=made.self_test)
    with pytest.raises(CheckpointError, match=r"self-test: wrote .* its trainer recorded"):
        self_test.check(other)
    with pytest.raises(CheckpointError, match=r"the stepper reference is .* nats a character from the network"):
        self_test.warm(ReferenceStepper(other.network(), 2), back)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_native_stepper_is_held_to_the_network_too(precision: Precision) -> None:
    """Eight bits may choose another character at a near tie, and still must mean the same; other weights do not."""
    made, other = (self_test.with_self_test(random_checkpoint(seed=seed)) for seed in (0, 1))
    try:
        mine, foreign = (CpuStepper(c.network(), 1, precision) for c in (made, other))
    except Unsupported as e:
        pytest.skip(f"no native stepper here: {e}")
    self_test.warm(mine, made)
    assert not mine.read(0).any()
    with pytest.raises(CheckpointError, match=rf"the stepper {foreign.name} is .* nats a character"):
        self_test.warm(foreign, made)


def test_a_checkpoint_without_a_self_test_is_taken(tiny: Checkpoint) -> None:
    """Files from before there was one, and those made by hand."""
    assert tiny.self_test == ""
    self_test.check(tiny)
    stepper = ReferenceStepper(tiny.network(torch.float32), 1)
    self_test.warm(stepper, tiny)
    assert not stepper.read(0).any()
