"""Models that requests name: memory is limited, a request waits for its own model only, a damaged file is read once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import store_folder
from model.errors import CheckpointError
from service.errors import ModelConflict, NoModel, Overloaded, UnknownModel
from service.models import loaded_model
from service.models.loaded_model import LoadedModel
from service.models.named_models import NamedModels
from service.models.on_demand_network import OnDemandNetwork
from service.models.stores.model_stores import ModelStores
from tests.conftest import random_checkpoint
from tests.service.models.loaded import load

N_IN_MEMORY = 3


def checkpoint_of(seed: int, n_hidden: int = 32) -> Checkpoint:
    return random_checkpoint(n_layers=1, n_hidden=n_hidden, seed=seed)


class Folder:
    """Checkpoints, memory for N_IN_MEMORY of them, and a loader that counts, and that can be made to wait."""

    def __init__(self, path: Path) -> None:
        checkpoints = [checkpoint_of(seed) for seed in range(N_IN_MEMORY + 2)]
        self.paths = {checkpoint.fingerprint: checkpoint.save(path) for checkpoint in checkpoints}
        self.ids = list(self.paths)
        self.path = path
        self.n_loads: Counter[str] = Counter()
        self.models: list[LoadedModel] = []
        self.slow = ""  # the id of a model whose load waits
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        measured = load(checkpoints[0])
        self.n_bytes = measured.n_bytes
        measured.engine.stop()
        self.named = NamedModels(ModelStores(path), self.load, N_IN_MEMORY * self.n_bytes)

    def load(self, path: Path) -> LoadedModel:
        self.n_loads[path.name] += 1
        checkpoint: Checkpoint = file_format.load(path)
        if checkpoint.fingerprint == self.slow:
            self.has_begun.set()
            assert self.may_end.wait(30)
        model = load(checkpoint)
        self.models.append(model)
        return model

    def save(self, name: str, checkpoint: Checkpoint, *, promote: bool = True) -> Path:
        """Store a checkpoint of a model."""
        path = checkpoint.save(store_folder(self.path, name))
        if promote:
            registry.promote(path)
        return path

    def loaded(self) -> list[str]:
        return [model.fingerprint for model in self.named.loaded()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """Models of a few kilobytes, which count their arrays alone: an engine takes more."""
    monkeypatch.setattr(loaded_model, "ENGINE_BYTES", 0)
    folder = Folder(tmp_path)
    yield folder
    for model in folder.models:
        model.engine.stop()


def test_the_engine_of_a_model_counts() -> None:
    """Of a hundred small models the engines take megabytes, whatever their arrays are."""
    model = load(checkpoint_of(1))
    assert model.n_bytes > loaded_model.ENGINE_BYTES >= 100 * 1024
    model.engine.stop()


def test_the_memory_is_limited(folder: Folder) -> None:
    """Of models that were used as often, the least recent one makes place; what is measured is within the limit."""
    assert folder.n_bytes > 0
    for id in folder.ids * 2:
        folder.named.acquire(id).release()
        assert folder.named.n_bytes <= N_IN_MEMORY * folder.n_bytes
    a, b, *_ = folder.loaded()
    assert folder.loaded() == folder.ids[-N_IN_MEMORY:]
    folder.named.acquire(a).release()
    folder.named.acquire(folder.ids[0]).release()
    assert a in folder.loaded()
    assert b not in folder.loaded()


def test_a_model_that_many_requests_name_stays(folder: Folder) -> None:
    """However many others are named once each; when nobody names it any more, it is evicted as they are."""
    popular, *others = folder.ids
    for _ in range(10):
        folder.named.acquire(popular).release()
    for id in others * 2:
        folder.named.acquire(id).release()
        assert popular in folder.loaded()
    assert folder.n_loads[folder.paths[popular].name] == 1
    for id in others * 20:
        folder.named.acquire(id).release()
    assert popular not in folder.loaded()


def test_a_large_model_must_be_used_more(folder: Folder) -> None:
    """One that takes the place of two small ones, and is used as often as each of them, is evicted first."""
    path, large = folder.save("large", checkpoint_of(9, n_hidden=50)), "large"
    small, other, third, *_ = folder.ids
    for id in (small, large):
        folder.named.acquire(id).release()
    fingerprint = file_format.read_info(path).fingerprint
    assert folder.loaded() == [small, fingerprint]
    assert {m.fingerprint: m.n_bytes for m in folder.named.loaded()}[fingerprint] > 1.5 * folder.n_bytes
    folder.named.acquire(small).release()
    folder.named.acquire(large).release()
    folder.named.acquire(other).release()
    assert folder.loaded() == [small, other]
    folder.named.acquire(third).release()
    assert folder.loaded() == [small, other, third]


def test_the_network_of_a_score_counts_at_once(folder: Folder) -> None:
    """It is loaded beside a model that is in memory already; others make place, or do when nobody uses them."""
    load = folder.load

    def with_network(path: Path) -> LoadedModel:
        model = load(path)
        model.network = OnDemandNetwork(path, model.fingerprint)
        return model

    folder.named._load = with_network
    first, used, last = folder.ids[:N_IN_MEMORY]
    folder.named.acquire(first).release()
    in_use = folder.named.acquire(used)
    with folder.named.acquire(last) as lease:
        assert folder.loaded() == [first, used, last]
        lease.model.network.get()
        assert lease.model.n_bytes > folder.n_bytes
        assert folder.loaded() == [used, last]
        in_use.model.network.get()
        assert folder.loaded() == [used, last]
        assert folder.named.n_bytes == in_use.model.n_bytes + lease.model.n_bytes > N_IN_MEMORY * folder.n_bytes
    assert folder.loaded() == [used]
    assert folder.named.n_bytes == in_use.model.n_bytes
    in_use.release()


def test_a_model_in_use_is_never_evicted(folder: Folder) -> None:
    """While all are in use, one more is refused with the time to ask again; it is loaded when one has become free."""
    *first, last, _ = folder.ids
    leases = {id: folder.named.acquire(id) for id in first}
    with pytest.raises(Overloaded) as refused:
        folder.named.acquire(last)
    assert refused.value.retry_after_s
    for id in first:  # what is in memory can still be used, and is the same one
        with folder.named.acquire(id) as again:
            assert again.model is leases[id].model
    leases.pop(first[0]).release()
    leases[last] = folder.named.acquire(last)
    assert sorted(folder.loaded()) == sorted(leases)
    for lease in leases.values():
        lease.release()


def test_an_evicted_model_is_stopped(folder: Folder) -> None:
    """Its engine's thread ends, so that its memory is free."""
    for id in folder.ids[: N_IN_MEMORY + 1]:
        folder.named.acquire(id).release()
    assert folder.models[0].engine.has_ended
    assert not folder.models[1].engine.has_ended


def test_a_model_larger_than_the_memory_says_so(folder: Folder) -> None:
    """It is a conflict of this model, not a lack of place that passes; nothing was evicted for it."""
    folder.named.acquire(folder.ids[0]).release()
    folder.save("large", checkpoint_of(9, n_hidden=200))
    with pytest.raises(ModelConflict, match="MODELS_MEMORY_MB"):
        folder.named.acquire("large")
    assert folder.loaded() == folder.ids[:1]


def test_a_checkpoint_that_was_replaced_under_its_name_is_another_model(folder: Folder) -> None:
    """By its name the new one answers; both are evicted like others, so that every other model still has a place."""
    old, new = (replace(checkpoint_of(seed), val_loss=9.5) for seed in (30, 31))
    path = folder.save("names", old)
    with folder.named.acquire("names") as lease:
        assert lease.model.fingerprint == old.fingerprint
    assert new.save(path.parent) == path
    with folder.named.acquire("names") as lease, folder.named.acquire(new.fingerprint, "names") as same:
        assert lease.model.fingerprint == new.fingerprint
        assert same.model is lease.model
    for id in folder.ids * 4:
        with folder.named.acquire(id) as lease:
            assert lease.model.fingerprint == id
    assert not set(folder.loaded()) & {old.fingerprint, new.fingerprint}


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_refused(folder: Folder) -> None:
    """Nobody gets another model than was named, and none of it stays in memory; the next request gets the new one."""
    old, new = (replace(checkpoint_of(seed), val_loss=9.5) for seed in (30, 31))
    path = folder.save("names", old)
    load = folder.load

    def replaced(path_to_load: Path) -> LoadedModel:
        new.save(path.parent)
        return load(path_to_load)

    folder.named._load = replaced
    with pytest.raises(ModelConflict, match="was replaced"):
        folder.named.acquire("names")
    assert folder.loaded() == []
    assert folder.models[0].engine.has_ended
    with folder.named.acquire("names") as lease:
        assert lease.model.fingerprint == new.fingerprint


def test_a_name_is_its_promoted_checkpoint(folder: Folder) -> None:
    """At once after a promotion and a roll back, and the same memory as by its fingerprint."""
    old, new = checkpoint_of(20), checkpoint_of(21)
    paths = [folder.save("names", checkpoint) for checkpoint in (old, new)]
    for promote, expected in ((None, new), (paths[0], old), (paths[1], new)):
        if promote is not None:
            registry.promote(promote)
        with folder.named.acquire("names") as lease, folder.named.acquire(expected.fingerprint, "names") as same:
            assert lease.model.fingerprint == expected.fingerprint
            assert same.model is lease.model
    registry.roll_back(paths[0].parent)
    with folder.named.acquire("names") as lease:
        assert lease.model.fingerprint == old.fingerprint
    assert max(folder.n_loads.values()) == 1


def test_an_unknown_name_is_answered_with_close_ones(folder: Folder) -> None:
    """And one of which nothing is promoted yet is there, without a model."""
    for name in ("recipes", "names", "log-lines"):
        folder.save(name, checkpoint_of(30), promote=name != "log-lines")
    with pytest.raises(UnknownModel, match="close names: names") as unknown:
        folder.named.acquire("nmaes")
    assert unknown.value.details["close"] == ["names"]
    with pytest.raises(NoModel, match="log-lines"):
        folder.named.acquire("log-lines")


def test_a_promoted_file_that_is_damaged_replaces_nothing(folder: Folder) -> None:
    """The checkpoint before it answers while it is in memory; a model that is not loaded fails alone."""
    good, bad = checkpoint_of(40), checkpoint_of(41)
    folder.save("names", good)
    folder.named.acquire("names").release()
    path = folder.save("names", bad)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with folder.named.acquire("names") as lease:
        assert lease.model.fingerprint == good.fingerprint
    for id in folder.ids[:N_IN_MEMORY] * 4:  # evicts it
        folder.named.acquire(id).release()
    with pytest.raises(ModelConflict, match="the file was modified"):
        folder.named.acquire("names")
    folder.named.acquire(folder.ids[0]).release()


def test_a_deleted_model_gives_its_memory_back(folder: Folder) -> None:
    folder.save("names", checkpoint_of(50))
    folder.named.acquire("names").release()
    assert ModelStores(folder.path).remove("names")
    folder.named.forget("names")
    assert folder.loaded() == []
    with pytest.raises(UnknownModel):
        folder.named.acquire("names")


def test_a_deletion_that_was_not_finished_is_finished_at_the_next_start(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is gone at once, and its files take no space for ever."""
    folder.save("names", checkpoint_of(50))
    stores = ModelStores(folder.path)
    with monkeypatch.context() as patch:
        patch.setattr("service.models.stores.model_stores.shutil.rmtree", lambda *_, **__: None)  # killed in between
        assert stores.remove("names")
    assert not stores.exists("names")
    folder.save("others", checkpoint_of(51))
    stores.remove_deleted()
    assert [path.name for path in store_folder(folder.path, "names").parent.iterdir()] == ["others"]


def test_a_request_waits_for_its_own_model_only(folder: Folder) -> None:
    """While one is loaded, others are used and loaded, and what the process does at its end goes on; it loads once."""
    slow, ready, new, *_ = folder.ids
    folder.named.acquire(ready).release()
    folder.slow = slow
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(folder.named.acquire, slow) for _ in range(3)]
        assert folder.has_begun.wait(30)
        try:
            folder.named.acquire(ready).release()
            folder.named.acquire(new).release()
            assert folder.named.loaded()
            assert not any(future.done() for future in waiting)
        finally:
            folder.may_end.set()
        leases = [future.result(30) for future in waiting]
    assert len({lease.model for lease in leases}) == 1
    assert folder.n_loads[folder.paths[slow].name] == 1
    for lease in leases:
        lease.release()


def test_a_damaged_file_is_read_once(folder: Folder) -> None:
    """The error names the file and the problem and no path; a repaired file is read again."""
    a, b, damaged, *_ = folder.ids
    kept = [folder.named.acquire(id) for id in (a, b)]
    for lease in kept:
        lease.release()
    path = folder.paths[damaged]
    whole, before = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    messages = set()
    for _ in range(3):
        with pytest.raises(ModelConflict, match="the file was modified") as refused:
            folder.named.acquire(damaged)
        messages.add(str(refused.value))
    (message,) = messages
    assert path.name in message
    assert str(folder.path) not in message
    assert folder.n_loads[path.name] == 1
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    folder.named.acquire(damaged).release()
    assert folder.n_loads[path.name] == 2


def test_a_load_that_fails_takes_no_place(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises reaches all that wait, and is no reason to refuse the next request."""

    def fail(path: Path) -> LoadedModel:
        raise MemoryError

    id = folder.ids[0]
    monkeypatch.setattr(folder.named, "_load", fail)
    for _ in range(N_IN_MEMORY + 1):
        with pytest.raises(MemoryError):
            folder.named.acquire(id)
    monkeypatch.undo()
    folder.named.acquire(id).release()
    with pytest.raises(UnknownModel):
        folder.named.acquire("0" * 16)


def test_the_path_of_the_folder_is_not_shown() -> None:
    """Neither of a file in it nor of the folder itself."""
    folder = Path("/srv/private/checkpoints")
    of_file = ModelConflict.of(CheckpointError("is damaged", field=str(folder / "a.safetensors")), folder)
    assert str(of_file) == "a.safetensors: is damaged"
    of_folder = ModelConflict.of(CheckpointError("no earlier promotion exists", field=str(folder)), folder)
    assert str(of_folder) == "the folder of checkpoints: no earlier promotion exists"
