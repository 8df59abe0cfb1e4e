"""A request may name another checkpoint than the served one: its text is the one that the plain loop writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from service.models.other_models import MAX_OTHER_MODELS
from tests.conftest import random_checkpoint
from tests.servers import RedisServer, Service

REQUEST = {"prompt": "hello", "max_chars": 60, "seed": 3, "temperature": 0.9}


def text_of(checkpoint: Checkpoint, n: int = 60, prompt: str = "hello") -> str:
    stepper, _ = choose(checkpoint.network(), 1)
    return "".join(write(stepper, checkpoint.vocab, prompt, n, SamplingParams(0.9), seed=3))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Checkpoint]]:
    """A folder with one more model than are kept loaded, of which the first is promoted."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints = [random_checkpoint(seed=seed) for seed in range(MAX_OTHER_MODELS + 2)]
    paths = [checkpoint.save(folder) for checkpoint in checkpoints]
    registry.promote(paths[0])
    return folder, checkpoints


@pytest.fixture(scope="module")
def service(models: tuple[Path, list[Checkpoint]], redis_server: RedisServer) -> Iterator[Service]:
    with Service(CHECKPOINT_DIR=str(models[0]), REDIS_URL=redis_server.url) as service:
        yield service


def test_each_model_writes_its_own_text(service: Service, models: tuple[Path, list[Checkpoint]]) -> None:
    """Twice around, so that each was evicted and loaded again; the served one is another all the time."""
    for checkpoint in models[1] * 2:
        answer = service.client.post("/generate", json={**REQUEST, "model": checkpoint.fingerprint}).json()
        assert answer["text"] == text_of(checkpoint)
        assert answer["model"]["fingerprint"] == checkpoint.fingerprint
    assert service.client.post("/generate", json=REQUEST).json()["text"] == text_of(models[1][0])
    assert service.client.get("/model").json()["id"] == models[1][0].fingerprint


def test_a_session_goes_on_with_the_model_that_is_named(
    service: Service, models: tuple[Path, list[Checkpoint]]
) -> None:
    """With its own model, exactly; with another one, after reading the text."""
    _, (served, other, *_) = models
    named = {"model": other.fingerprint}
    session = service.client.post("/generate", json={**REQUEST, **named, "max_chars": 30}).json()["session_id"]
    more = {"session_id": session, "max_chars": 30, "temperature": 0.9}
    answer = service.client.post("/generate", json={**more, **named}).json()
    assert (answer["text"], answer["reencoded"]) == (text_of(other)[30:], False)
    answer = service.client.post("/generate", json=more).json()
    assert (answer["model"]["fingerprint"], answer["reencoded"]) == (served.fingerprint, True)


def test_a_text_is_resumed_and_forked_by_the_model_that_wrote_it(
    service: Service, models: tuple[Path, list[Checkpoint]]
) -> None:
    """Without a word of the client; a model that it names and that did not write the text cannot resume it."""
    _, (served, other, *_) = models
    named = {"model": other.fingerprint}
    session = service.client.post("/generate", json={**REQUEST, **named, "max_chars": 30}).json()["session_id"]
    resumed = service.resume(session)
    assert "".join(event.data["text"] for event in resumed if event.name == "message") == text_of(other)[:30]
    refused = service.client.get(f"/sessions/{session}/stream", params={"model": served.fingerprint})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_changed")
    fork = service.client.post(f"/sessions/{session}/fork", json={"position": 15})
    assert fork.status_code == 201
    more = {"session_id": fork.json()["session_id"], "max_chars": 30, "temperature": 0.9}
    answer = service.client.post("/generate", json={**more, **named}).json()
    assert (answer["text"], answer["reencoded"]) == (text_of(other)[10:40], False)


def test_a_model_that_does_not_exist_is_named(service: Service) -> None:
    """404 for an unknown id, 422 for what can be none, before any text."""
    answer = service.client.post("/generate", json={**REQUEST, "model": "0" * 16, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_model")
    answer = service.client.post("/generate", json={**REQUEST, "model": "the best one"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "model")


def test_the_served_model_is_described(service: Service, models: tuple[Path, list[Checkpoint]]) -> None:
    """Its loss, network and vocabulary, and whether it is of a list."""
    described = service.client.get("/model").json()
    served = models[1][0]
    assert described["characters"] == served.vocab.characters
    assert (described["val_loss"], described["is_list"]) == (served.val_loss, False)
    assert described["network"]["n_hidden"] == served.config.n_hidden


def test_a_model_is_downloaded_and_deleted(service: Service, models: tuple[Path, list[Checkpoint]]) -> None:
    """The file is the checkpoint; the served model stays; a deleted one is no longer listed."""
    folder, (served, *_) = models
    last = random_checkpoint(seed=99)  # of this test alone
    path = last.save(folder)
    file = service.client.get(f"/models/{last.fingerprint}/file")
    assert file.content == path.read_bytes()
    assert path.name in file.headers["Content-Disposition"]
    refused = service.client.delete(f"/models/{served.fingerprint}/file")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_conflict")
    assert service.client.delete(f"/models/{last.fingerprint}/file").status_code == 204
    assert service.client.delete(f"/models/{last.fingerprint}/file").status_code == 404
    assert last.fingerprint not in [model["id"] for model in service.client.get("/models").json()["models"]]
    assert not path.exists()


def test_a_text_is_previewed(service: Service) -> None:
    """What it would be as a corpus: a list is seen as one; nothing is stored."""
    names = "\n".join(f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in ("n", "ra", "los", "min"))
    before = service.client.get("/corpora").json()
    preview = service.client.post("/preview?name=names", content=names).json()
    assert (preview["characters"], preview["layout"]["items"]) == (len(names), "lines")
    assert service.client.post("/preview", content=b"caf\xe9").status_code == 422
    assert service.client.get("/corpora").json() == before
