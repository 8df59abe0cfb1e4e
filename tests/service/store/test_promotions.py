"""Of several processes that promote at the same time one wins, and the others get an error."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError, PromotionConflict
from service.jobs.request import JobRequest
from service.jobs.training import JobEnvironment, Training
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.promotions import MemoryPromotions, Promotions, RedisPromotions, change_promotion
from tests.conftest import random_checkpoint


@pytest.fixture
def client(redis_client: Any) -> Any:
    redis_client.delete(*redis_client.keys("lh:promotion:*") or ["none"])
    return redis_client


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which a lock of another machine holds nobody back."""
    monkeypatch.setattr(registry, "folder_lock", lambda _: contextlib.nullcontext())


def race(client: Any, paths: list[Path], version: int) -> tuple[list[Path], list[Path]]:
    """Promote all at once; return who won and who was refused."""
    barrier, won, refused = threading.Barrier(len(paths)), [], []

    def promote(path: Path) -> None:
        promotions = RedisPromotions(client)
        barrier.wait()
        try:
            change_promotion(promotions, version, partial(registry.promote, path))
        except PromotionConflict:
            refused.append(path)
        else:
            won.append(path)

    threads = [threading.Thread(target=promote, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won, refused


def test_of_many_machines_one_promotes(client: Any, tmp_path: Path, without_locks: None) -> None:
    """Each decided by the same version; promoted.json has the winner's name, and the next change goes through."""
    paths = [random_checkpoint(n_layers=1, n_hidden=4, seed=seed).save(tmp_path) for seed in range(8)]
    for _ in range(5):
        version = registry.promotion_version(tmp_path)
        won, refused = race(client, paths, version)
        assert (len(won), len(refused)) == (1, len(paths) - 1)
        assert registry.promoted_path(tmp_path) == won[0]
        assert registry.promotion_version(tmp_path) != version


def test_two_folders_share_a_redis(client: Any, tmp_path: Path) -> None:
    """What one promotes keeps nothing from the other; so it is too for a folder that was deleted and made again."""
    for name in ("one", "other"):
        paths = [random_checkpoint(n_layers=1, n_hidden=4, seed=seed).save(tmp_path / name) for seed in range(2)]
        registry.promote(paths[0])
        version = registry.promotion_version(tmp_path / name)
        change_promotion(RedisPromotions(client), version, partial(registry.promote, paths[1]))
        assert registry.promoted_path(tmp_path / name) == paths[1]


@pytest.mark.parametrize("where", ["memory", "redis", "no redis"])
def test_who_decided_by_an_old_version_gets_an_error(client: Any, tmp_path: Path, where: str) -> None:
    """Also by the file alone: a promotion by the command line claims nothing."""
    promotions: Promotions = MemoryPromotions()
    if where != "memory":
        promotions = RedisPromotions(client if where == "redis" else connect("unix:///nowhere/redis.sock"))
    first, second = (random_checkpoint(n_layers=1, n_hidden=4, seed=seed).save(tmp_path) for seed in (0, 1))
    version = registry.promotion_version(tmp_path)
    registry.promote(first)
    for change in (partial(registry.promote, second), partial(registry.roll_back, tmp_path)):
        with pytest.raises(PromotionConflict):
            change_promotion(promotions, version, change)
    assert registry.promoted_path(tmp_path) == first
    change_promotion(promotions, registry.promotion_version(tmp_path), partial(registry.promote, second))
    assert registry.promoted_path(tmp_path) == second


def test_each_model_has_claims_of_its_own(client: Any) -> None:
    """Two folders in which nothing was promoted have the same version; of one model, one process wins."""
    promotions = RedisPromotions(client)
    assert [promotions.claim(0, name) for name in ("default", "names", "recipes", "names")] == [True, True, True, False]
    for name in ("default", "names", "recipes"):
        promotions.release(0, name)
    assert promotions.claim(0, "names")
    promotions.release(0, "names")


def test_a_change_that_fails_gives_its_claim_back(client: Any, tmp_path: Path) -> None:
    """A roll-back without a predecessor does not block the promotion after it."""
    path = random_checkpoint(n_layers=1, n_hidden=4).save(tmp_path)
    promotions = RedisPromotions(client)
    with pytest.raises(CheckpointError, match="no earlier promotion"):
        change_promotion(promotions, 0, partial(registry.roll_back, tmp_path))
    change_promotion(promotions, 0, partial(registry.promote, path))
    assert registry.promoted_path(tmp_path) == path


class Log:
    """What a training reports."""

    def put(self, **fields: Any) -> None: ...

    def emit(self, name: str, data: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


class Operator(Log):
    """Promotes a checkpoint of its own as soon as the training has promoted one, and sees what is promoted later."""

    def __init__(self, mine: Path) -> None:
        self.mine = mine
        self.promoted: list[Path | None] = []  # at each validation since then
        self.notes: list[str] = []
        self._has_promoted = False

    def emit(self, name: str, data: dict[str, Any]) -> None:
        if name == "promoted" and not self._has_promoted:
            registry.promote(self.mine)
            self._has_promoted = True
        if name == "validation" and self._has_promoted:
            self.promoted.append(registry.promoted_path(self.mine.parent))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Promoted(Log):
    """Counts what was promoted, and the validations that were better than those before."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.n_best = 0
        self.notes: list[str] = []

    def emit(self, name: str, data: dict[str, Any]) -> None:
        if name == "promoted":
            self.names.append(data["name"])
        self.n_best += name == "validation" and data["is_best"]

    def note(self, text: str) -> None:
        self.notes.append(text)


def training(
    folder: Path, client: Any, log: Log, promote: Any, settings: dict[str, Any], *, is_bootstrap: bool
) -> Training:
    """A short training on a corpus of its own; checkpoints are promoted in the folder `checkpoints`."""
    corpora = Corpora(folder / "corpora", 1 << 20)
    text = iter([b"to be or not to be\n" * 100, b""])
    corpora.put("words", lambda _: next(text))
    small = {"batch_size": 4, "seq_length": 8, "n_embed": 4}
    request = JobRequest("words", "quick", promote, False, {**small, **settings})
    environment = JobEnvironment(folder / "checkpoints", folder / "run", corpora, "cpu", 10)
    return Training(request, environment, log, is_bootstrap, lambda: False, RedisPromotions(client))


def test_a_bootstrap_job_alone_promotes_whatever_is_better(client: Any, tmp_path: Path) -> None:
    """Each validation that is better than those before, from the first one on: its own promotions supersede nobody."""
    (tmp_path / "checkpoints").mkdir()
    log = Promoted()
    settings = {"steps": 60, "n_hidden": 16, "validations": 6}
    result = training(tmp_path, client, log, "if_better", settings, is_bootstrap=True).run()
    assert log.n_best >= 3
    assert len(log.names) == log.n_best
    assert not [note for note in log.notes if "promotes nothing more" in note]
    assert result.decision is not None
    assert result.decision.reason == "there was no model of this text before this job"


def test_a_bootstrap_job_leaves_what_somebody_else_promoted(client: Any, tmp_path: Path) -> None:
    """It promotes its checkpoints while it runs, until an operator promotes another; then it competes at its end."""
    settings = {"steps": 60, "n_hidden": 16, "validations": 6}
    operator = Operator(random_checkpoint(n_layers=1, n_hidden=4).save(tmp_path / "checkpoints"))
    result = training(tmp_path, client, operator, "if_better", settings, is_bootstrap=True).run()
    assert len(operator.promoted) >= 3
    assert set(operator.promoted) == {operator.mine}
    assert sum("promotes nothing more until its end" in note for note in operator.notes) == 1
    assert result.decision is not None
    assert "no model of this text" not in result.decision.reason


def test_a_training_that_loses_says_so(client: Any, tmp_path: Path, tiny: Checkpoint) -> None:
    """Another machine has claimed the version: the job finishes, its checkpoint is kept, and the decision says why."""
    checkpoints = tmp_path / "checkpoints"
    served = tiny.save(checkpoints)
    registry.promote(served)
    assert RedisPromotions(client).claim(registry.promotion_version(checkpoints))
    settings = {"steps": 2, "n_hidden": 8, "validations": 1}
    result = training(tmp_path, client, Log(), "always", settings, is_bootstrap=False).run()
    assert result.decision is not None
    assert result.decision.promoted is False
    assert "at the same time" in result.decision.reason
    assert registry.promoted_path(checkpoints) == served
    assert result.checkpoint is not None
    assert (checkpoints / result.checkpoint["name"]).exists()
