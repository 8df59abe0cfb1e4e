"""Checkpoints are found by their ids in the stores of all models; ids that nobody has cost next to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import DEFAULT, store_folder
from service.models.stores.model_stores import ModelStores
from tests.conftest import random_checkpoint

UNKNOWN = "0123456789abcdef"
SCAN_S = 0.25


class Clocked(ModelStores):
    """Stores whose scans take a quarter of a second each, and are counted."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, lambda: self.now)
        self.now = 100.0
        self.n_scans = 0

    def names(self) -> list[str]:
        """Take the time of a scan."""
        self.now += SCAN_S
        self.n_scans += 1
        return super().names()


def checkpoint_of(seed: int) -> Checkpoint:
    return random_checkpoint(n_layers=1, n_hidden=16, seed=seed)


@pytest.fixture
def stores(tmp_path: Path) -> Clocked:
    return Clocked(tmp_path)


def test_a_checkpoint_is_found_in_every_store(stores: Clocked) -> None:
    """Of the default model and of the one that is named without a look at others, of others after one look at all."""
    saved = {}
    for seed, name in enumerate((DEFAULT, "names", "logs", "logs")):
        checkpoint = checkpoint_of(seed)
        saved[checkpoint.fingerprint] = checkpoint.save(store_folder(stores.root, name))
    of_default, of_names, *of_logs = saved
    assert stores.find(of_default, "logs") == saved[of_default]
    assert stores.find(of_names, "names") == saved[of_names]
    assert stores.n_scans == 0
    for id in (of_names, *of_logs) * 2:
        assert stores.find(id) == saved[id]
    assert stores.n_scans == 1
    saved[of_logs[0]].unlink()
    assert stores.find(of_logs[0]) is None
    assert stores.find(of_logs[1]) == saved[of_logs[1]]


def test_ids_that_nobody_has_take_a_tenth_of_the_time(stores: Clocked) -> None:
    """However many are requested, and what was written meanwhile is found soon."""
    store_folder(stores.root, "names").mkdir(parents=True)
    began = stores.now
    for i in range(1000):
        assert stores.find(f"{i:016x}") is None
        stores.now += 0.01
    assert stores.n_scans > 1
    assert stores.n_scans * SCAN_S <= (stores.now - began) / 10 + SCAN_S
    checkpoint = checkpoint_of(1)
    path = checkpoint.save(store_folder(stores.root, "names"))
    assert stores.find(checkpoint.fingerprint, "names") == path
    stores.now += 10 * SCAN_S
    assert stores.find(checkpoint.fingerprint) == path


def test_a_damaged_file_hides_no_other(stores: Clocked) -> None:
    checkpoint = checkpoint_of(1)
    path = checkpoint.save(store_folder(stores.root, "names"))
    path.with_name("a-val.safetensors").write_bytes(b"no checkpoint")
    assert stores.find(checkpoint.fingerprint) == path
    assert stores.find(UNKNOWN) is None
