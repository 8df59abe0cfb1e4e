"""Models that requests name: few are in memory, a request waits for its own model only, a damaged file is read once."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.checkpoints import file_format
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError
from service.errors import ModelConflict, Overloaded, UnknownModel
from service.models.loaded_model import LoadedModel
from service.models.other_models import MAX_IN_MEMORY, MAX_OTHER_MODELS, OtherModels
from tests.conftest import random_checkpoint
from tests.service.models.loaded import load


class Folder:
    """Checkpoints, and a loader that counts, and that can be made to wait."""

    def __init__(self, path: Path, n: int) -> None:
        checkpoints = [random_checkpoint(n_layers=1, n_hidden=4, seed=seed) for seed in range(n)]
        self.paths = {checkpoint.fingerprint: checkpoint.save(path) for checkpoint in checkpoints}
        self.ids = list(self.paths)
        self.path = path
        self.n_loads: Counter[str] = Counter()
        self.models: list[LoadedModel] = []
        self.slow = ""  # the id of a model whose load waits
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.others = OtherModels(path, self.load)

    def load(self, path: Path) -> LoadedModel:
        self.n_loads[path.name] += 1
        checkpoint: Checkpoint = file_format.load(path)
        if checkpoint.fingerprint == self.slow:
            self.has_begun.set()
            assert self.may_end.wait(30)
        model = load(checkpoint)
        self.models.append(model)
        return model

    @property
    def n_in_memory(self) -> int:
        return len(self.others.loaded())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path, MAX_IN_MEMORY + 1)
    yield folder
    for model in folder.models:
        model.engine.stop()


def test_a_model_in_use_is_not_loaded_twice(folder: Folder) -> None:
    """It made place while its texts ran; named again, it is the same one, and stays."""
    a, b, c, *_ = folder.ids
    leases = [folder.others.acquire(id) for id in (a, b, c)]
    again = folder.others.acquire(a)
    assert again.model is leases[0].model
    for lease in (*leases, again):
        lease.release()
    assert folder.n_in_memory == MAX_OTHER_MODELS
    with folder.others.acquire(a) as lease:
        assert lease.model is again.model
    assert folder.n_loads[folder.paths[a].name] == 1


def test_the_models_in_memory_are_limited(folder: Folder) -> None:
    """While all are in use, one more is refused with the time to ask again; it is loaded when one has become free."""
    *first, last = folder.ids
    leases = {id: folder.others.acquire(id) for id in first}
    with pytest.raises(Overloaded) as refused:
        folder.others.acquire(last)
    assert refused.value.retry_after_s
    assert folder.n_in_memory == MAX_IN_MEMORY
    for id in first:  # what is in memory can still be used
        folder.others.acquire(id).release()
    leases.pop(first[0]).release()
    leases[last] = folder.others.acquire(last)
    assert folder.n_in_memory == MAX_IN_MEMORY
    for lease in leases.values():
        lease.release()
    assert folder.n_in_memory == MAX_OTHER_MODELS


def test_an_unused_model_makes_place_before_one_in_use(folder: Folder) -> None:
    a, b, c, *_ = folder.ids
    with folder.others.acquire(a) as lease:
        folder.others.acquire(b).release()
        folder.others.acquire(c).release()
        assert [model.fingerprint for model in folder.others.loaded()] == [a, c]
        assert lease.model in folder.others.loaded()


def test_a_request_waits_for_its_own_model_only(folder: Folder) -> None:
    """While one is loaded, others are used and loaded, and what the process does at its end goes on; it loads once."""
    slow, ready, new, *_ = folder.ids
    folder.others.acquire(ready).release()
    folder.slow = slow
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(folder.others.acquire, slow) for _ in range(3)]
        assert folder.has_begun.wait(30)
        try:
            folder.others.acquire(ready).release()
            folder.others.acquire(new).release()
            assert folder.others.loaded()
            assert not any(future.done() for future in waiting)
        finally:
            folder.may_end.set()
        leases = [future.result(30) for future in waiting]
    assert len({lease.model for lease in leases}) == 1
    assert folder.n_loads[folder.paths[slow].name] == 1
    for lease in leases:
        lease.release()
    assert folder.n_in_memory == MAX_OTHER_MODELS


def test_a_damaged_file_is_read_once(folder: Folder) -> None:
    """The error names the file and the problem and no path; a repaired file is read again."""
    a, b, damaged, *_ = folder.ids
    kept = [folder.others.acquire(id) for id in (a, b)]
    for lease in kept:
        lease.release()
    path = folder.paths[damaged]
    whole, before = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    messages = set()
    for _ in range(3):
        with pytest.raises(ModelConflict, match="the file was modified") as refused:
            folder.others.acquire(damaged)
        messages.add(str(refused.value))
    (message,) = messages
    assert path.name in message
    assert str(folder.path) not in message
    assert folder.n_loads[path.name] == 1
    path.write_bytes(whole)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    folder.others.acquire(damaged).release()
    assert folder.n_loads[path.name] == 2


def test_a_load_that_fails_takes_no_place(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises reaches all that wait, and is no reason to refuse the next request."""

    def fail(path: Path) -> LoadedModel:
        raise MemoryError

    id = folder.ids[0]
    monkeypatch.setattr(folder.others, "_load", fail)
    for _ in range(MAX_IN_MEMORY + 1):
        with pytest.raises(MemoryError):
            folder.others.acquire(id)
    monkeypatch.undo()
    folder.others.acquire(id).release()
    with pytest.raises(UnknownModel):
        folder.others.acquire("0" * 16)


def test_the_path_of_the_folder_is_not_shown() -> None:
    """Neither of a file in it nor of the folder itself."""
    folder = Path("/srv/private/checkpoints")
    of_file = ModelConflict.of(CheckpointError("is damaged", field=str(folder / "a.safetensors")), folder)
    assert str(of_file) == "a.safetensors: is damaged"
    of_folder = ModelConflict.of(CheckpointError("no earlier promotion exists", field=str(folder)), folder)
    assert str(of_folder) == "the folder of checkpoints: no earlier promotion exists"
