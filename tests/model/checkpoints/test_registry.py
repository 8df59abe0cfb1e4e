"""The folder of checkpoints: listing, registering, promotion, roll back and retention."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.registry import promote, promoted_path, promotion_history, roll_back
from model.errors import CheckpointError
from tests.conftest import random_checkpoint


def aged(path: Path, age_s: float) -> Path:
    """The same file, older."""
    at = path.stat().st_mtime - age_s
    os.utime(path, (at, at))
    return path


def test_the_listing_describes_each_file(tmp_path: Path, tiny: Checkpoint) -> None:
    """Metadata, which file is promoted and which was before; a broken file is listed with its error."""
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
    """Once: the predecessor; twice: the one before it; then there is none. Removed files are skipped."""
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
    """By count, never the file that is served nor the one that a roll back needs."""
    paths = [aged(random_checkpoint(seed=i).save(tmp_path), 100 - i) for i in range(6)]
    promote(paths[0])
    promote(paths[1])
    assert set(registry.prune(tmp_path, keep=2)) == {paths[2].name, paths[3].name}
    assert set(registry.checkpoint_paths(tmp_path)) == {paths[0], paths[1], paths[4], paths[5]}
    assert promotion_history(tmp_path) == [paths[1].name, paths[0].name]


def test_a_registered_model_replaces_no_other(tmp_path: Path, tiny: Checkpoint) -> None:
    """The same model again is the same file; another model of the same file name gets another name."""
    store = tmp_path / "store"
    first = registry.register(tiny.save(tmp_path / "a"), store)
    assert registry.register(tmp_path / "a" / first.name, store) == first
    other = replace(random_checkpoint(seed=5), val_loss=tiny.val_loss)
    second = registry.register(other.save(tmp_path / "b"), store)
    assert second.name == f"{first.stem}-{other.fingerprint[:8]}.safetensors"
    assert load(first).fingerprint == tiny.fingerprint
    assert load(second).fingerprint == other.fingerprint
    assert not list(store.glob(".*"))


def test_two_models_of_one_name_that_are_registered_at_once_are_both_kept(tmp_path: Path) -> None:
    """Two uploads, or two trainings, may end with the same loss at the same step."""
    models = [replace(random_checkpoint(seed=seed), val_loss=1.5) for seed in range(2)]
    sources = [model.save(tmp_path / f"{seed}") for seed, model in enumerate(models)]
    for attempt in range(5):
        store, barrier = tmp_path / f"store{attempt}", threading.Barrier(2)

        def register(source: Path, store: Path = store, barrier: threading.Barrier = barrier) -> Path:
            barrier.wait(30)
            return registry.register(source, store)

        with ThreadPoolExecutor(2) as pool:
            registered = list(pool.map(register, sources))
        assert [load(path).fingerprint for path in registered] == [model.fingerprint for model in models]


def test_a_checkpoint_that_was_removed_is_not_promoted(tmp_path: Path, tiny: Checkpoint) -> None:
    """While it was tested, a training has pruned it or its model was deleted: what is promoted stays."""
    promoted, removed = random_checkpoint(seed=1).save(tmp_path), tiny.save(tmp_path)
    promote(promoted)
    removed.unlink()
    with pytest.raises(CheckpointError, match="has been removed"):
        promote(removed)
    assert promoted_path(tmp_path) == promoted


def test_pruning_does_not_remove_what_is_promoted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever comes first, the promoted checkpoint is there in the end."""
    oldest, newest = aged(random_checkpoint(seed=1).save(tmp_path), 10), random_checkpoint(seed=2).save(tmp_path)
    promote(newest)
    checkpoint_paths, promoted = registry.checkpoint_paths, ThreadPoolExecutor(1)

    def while_another_promotes(folder: Path) -> list[Path]:
        monkeypatch.undo()
        paths, promotion = checkpoint_paths(folder), promoted.submit(promote, oldest)
        wait([promotion], 0.2)  # it would be over long before
        return paths

    monkeypatch.setattr(registry, "checkpoint_paths", while_another_promotes)
    registry.prune(tmp_path, keep=1)
    promoted.shutdown()
    served = promoted_path(tmp_path)
    assert served is not None
    assert served.exists()


def test_a_promotion_names_one_and_keeps_the_history(tmp_path: Path) -> None:
    """The last one promoted is served; the file is replaced atomically."""
    assert promoted_path(tmp_path) is None
    first, second = random_checkpoint(seed=1).save(tmp_path), random_checkpoint(seed=2).save(tmp_path)
    promote(first)
    promote(second)
    assert promoted_path(tmp_path) == second
    assert json.loads((tmp_path / "promoted.json").read_text())["before"] == [first.name]
    promote(first)
    assert promoted_path(tmp_path) == first
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"checkpoint": "../x.safetensors", "before": []}', '{"checkpoint": 1, "before": []}']
)
def test_a_broken_promotion_is_refused(tmp_path: Path, text: str) -> None:
    """The error names promoted.json; a name in it cannot point outside the folder."""
    (tmp_path / "promoted.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"promoted\.json"):
        promoted_path(tmp_path)


def test_two_files_of_one_model_are_one_model(tmp_path: Path) -> None:
    """Its loss was measured twice: it is listed once, promoted by its id, and a roll back goes to another model."""
    one = random_checkpoint(seed=1)
    sampled, whole = replace(one, val_loss=2.5).save(tmp_path), replace(one, val_loss=2.25).save(tmp_path)
    other = replace(random_checkpoint(seed=2), val_loss=2.75).save(tmp_path)
    for path in (other, sampled, whole):
        registry.promote(path)
    listed = registry.list_checkpoints(tmp_path)
    assert sorted(entry["id"] for entry in listed) == sorted({one.fingerprint, random_checkpoint(seed=2).fingerprint})
    assert [entry["name"] for entry in listed if entry["promoted"]] == [whole.name]
    assert registry.find(tmp_path, one.fingerprint) == whole
    os.utime(sampled, (2**31, 2**31))  # the newest file, and not the promoted one
    assert [entry["name"] for entry in registry.list_checkpoints(tmp_path) if entry["promoted"]] == [whole.name]
    assert registry.find(tmp_path, one.fingerprint) == whole
    assert registry.roll_back(tmp_path) == other


def test_a_model_is_removed_unless_it_is_needed(tmp_path: Path) -> None:
    """All of its files; not the promoted model, nor the one that a roll back promotes; False for no such model."""
    models = [random_checkpoint(seed=seed) for seed in range(3)]
    paths = [model.save(tmp_path) for model in models]
    copy = replace(models[0], val_loss=9.5).save(tmp_path)
    for path in paths:
        promote(path)
    for needed, says in ((1, "roll back"), (2, "is served")):
        with pytest.raises(CheckpointError, match=says):
            registry.remove(tmp_path, models[needed].fingerprint)
    assert registry.remove(tmp_path, models[0].fingerprint)
    assert not paths[0].exists()
    assert not copy.exists()
    assert paths[1].exists()
    assert not registry.remove(tmp_path, models[0].fingerprint)
