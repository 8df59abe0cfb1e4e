"""Checkpoint files: read back complete, or refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import list_checkpoints
from model.errors import CheckpointError, StorageError


def test_a_checkpoint_is_read_back_unchanged(tmp_path: Path, tiny: Checkpoint) -> None:
    """Weights to the bit, config, vocabulary, losses, options; the loss is in its name."""
    path = tiny.save(tmp_path)
    assert path.name == "val2.5000-step000010.safetensors"
    back = load(path)
    assert all(torch.equal(back.weights[k], v) for k, v in tiny.weights.items())
    assert replace(back, weights={}, created="") == replace(tiny, weights={}, created="")
    assert back.created
    assert back.fingerprint == tiny.fingerprint
    assert os.listdir(tmp_path) == [path.name]


def test_the_fingerprint_follows_every_weight(tiny: Checkpoint) -> None:
    """One bit of one weight, or the vocabulary, makes it another model; the loss does not."""
    for name, tensor in tiny.weights.items():
        changed = tensor.clone()
        changed.view(-1)[0] += 1e-3
        assert replace(tiny, weights={**tiny.weights, name: changed}).fingerprint != tiny.fingerprint
    assert replace(tiny, val_loss=1.0).fingerprint == tiny.fingerprint


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, tiny: Checkpoint, keep: int) -> None:
    """Cut anywhere, it is not a complete safetensors file."""
    path = tiny.save(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a complete safetensors file") as e:
        load(path)
    assert str(path) in str(e.value)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    """Another program's safetensors, and a pickle, which is not even opened."""
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="format is None, expected 'longhand-1'"):
        load(tmp_path / "foreign.safetensors")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load(tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "none.safetensors")


def test_a_modified_file_is_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    """A weight changed in place: the fingerprint does not match."""
    path = tiny.save(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the file was modified"):
        load(path)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    """NaN in a weight, or tensors of another shape than the config says."""
    poisoned = {k: v.clone() for k, v in tiny.weights.items()}
    poisoned["head.bias"][0] = torch.nan
    with pytest.raises(CheckpointError, match=r"head\.bias is not all finite"):
        load(replace(tiny, weights=poisoned).save(tmp_path))
    wider = replace(tiny, config=replace(tiny.config, n_hidden=32))
    with pytest.raises(CheckpointError, match="tensors do not match its config"):
        load(wider.save(tmp_path))


def test_metadata_that_cannot_be_used_is_refused(tmp_path: Path, tiny: Checkpoint) -> None:
    """A missing part, or a value out of range, is named."""
    path = tiny.save(tmp_path)
    good = {"config": json.dumps(tiny.config.__class__.__name__)}
    save_file(dict(tiny.weights), path, metadata={"format": "longhand-1", **good})
    with pytest.raises(CheckpointError, match="metadata cannot be used"):
        load(path)


@pytest.mark.parametrize(("part", "value"), [("run", []), ("run", "text"), ("run", None), ("vocab", {}), ("vocab", 5)])
def test_metadata_of_another_type_are_refused(tmp_path: Path, tiny: Checkpoint, part: str, value: object) -> None:
    """So a list of checkpoints names such a file, and shows the others."""
    path = tiny.save(tmp_path)
    save_file(dict(tiny.weights), path, metadata={**tiny.metadata(), part: json.dumps(value)})
    with pytest.raises(CheckpointError, match=f"{part} is .*, expected"):
        load(path)
    (entry,) = list_checkpoints(tmp_path)
    assert entry["name"] == path.name


def test_a_full_disk_leaves_the_old_file_unchanged(
    tmp_path: Path, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the path, the old file is still complete, and no temporary file is left."""
    path = tiny.save(tmp_path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.atomic_files.os.fsync", full)
    with pytest.raises(StorageError, match="No space left") as e:
        tiny.save(tmp_path)
    assert str(path) in str(e.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
