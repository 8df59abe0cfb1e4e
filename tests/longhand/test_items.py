"""Items of a list through both clients: whole, in order, whatever happens to workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import longhand
from model.checkpoints import registry
from model.checkpoints.names import store_folder
from tests.integration.lists import list_checkpoint, store_of
from tests.longhand.clients import KINDS, client_of
from tests.servers import RedisServer, Service

WISH: dict[str, Any] = {"seed": 8, "unique": False, "logit_bias": {"\n": -4.0}}
MANY = 8000
"""So many long items that no buffer holds them."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of checkpoints, in which a model of a list is promoted."""
    return store_of(tmp_path_factory.mktemp("lists"), list_checkpoint())


@pytest.fixture(scope="module")
def lists(models: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service of a model of a list."""
    with Service(CHECKPOINT_DIR=str(models), WORKERS="1", REDIS_URL=redis_server.url) as service:
        yield service


@pytest.fixture(params=KINDS)
def client(lists: Service, request: pytest.FixtureRequest) -> Iterator[longhand.Client]:
    with client_of(request.param, lists.url) as client:
        yield client


def received(items: Any) -> list[dict[str, Any]]:
    """All items of a stream of either client."""
    return [item.model_dump() for item in items]


def test_items_are_those_of_the_api(client: longhand.Client, lists: Service) -> None:
    """In their order, with how it ended; errors are raised where the stream is opened."""
    plain = lists.generate(items=40, prompt="a", novel=True, max_chars=6, seed=3)
    with client.items(40, "a", novel=True, max_chars=6, seed=3) as items:
        with pytest.raises(RuntimeError):
            _ = items.result
        assert received(items) == plain["items"]
    assert items.result.model_dump(exclude={"usage"}) == {k: v for k, v in plain.items() if k not in ("items", "usage")}
    with pytest.raises(longhand.InvalidRequest) as raised, client.items(3, "x") as items:
        pass
    assert raised.value.field == "prompt"


def test_a_seed_of_its_own(client: longhand.Client) -> None:
    """The client chooses one where none is given, and the result names it."""
    with client.items(20) as items:
        first = received(items)
    with client.items(20, seed=items.result.seed) as again:
        assert received(again) == first


def test_no_item_is_lost_or_changed_when_a_worker_is_killed(client: longhand.Client, lists: Service) -> None:
    """kill -9 of every worker in the middle: the next one sends the same items, and the known ones are dropped."""
    expected = lists.generate(items=MANY, **WISH)["items"]
    with client.items(MANY, **WISH) as items:
        matches = [next(items).model_dump() for _ in range(10)]
        for pid in lists.workers():
            lists.kill_worker(pid)
        matches += received(items)
    assert matches == expected
    assert items.reconnects >= 1
    assert (items.result.finish_reason, items.result.generated) == ("complete", MANY)


def test_scores_of_items(client: longhand.Client) -> None:
    """Each with its surprisal and rank, and the same as the item came with when it was generated."""
    with client.items(20, seed=1) as items:
        generated = received(items)
    scored = client.score_items([item["text"] for item in generated], rank_by="bits")
    assert [-score.bits * math.log(2) for score in scored.results if score.bits is not None] == pytest.approx(
        [item["logprob"] for item in generated], rel=1e-15
    )
    assert all(score.rank is not None and 0 <= score.rank <= 100 for score in scored.results)
    (unknown,) = client.score_items(["axb"], on_unknown="skip").results
    assert (unknown.bits, unknown.unknown, unknown.peak.position) == (None, "x", 1)


def test_items_do_not_go_on_with_another_model(lists: Service, models: Path) -> None:
    """The beginning of one model's items and the rest of another's would be no sample of either."""
    folder = store_of(store_folder(models, "other"), list_checkpoint())
    other = list_checkpoint(end_bias=0.5, val_loss=1.6).save(folder)
    with (
        longhand.Client(lists.url) as client,
        client.items(MANY, model="other", **{**WISH, "logit_bias": {"\n": -8.0}}) as items,
    ):
        next(items)
        registry.promote(other)
        for pid in lists.workers():
            lists.kill_worker(pid)
        with pytest.raises(longhand.InvalidResponse, match=r"another model, val1\.6"):
            received(items)
