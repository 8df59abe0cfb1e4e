"""A request may name another checkpoint than the served one: its text is the one that the plain loop writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints import registry, self_test
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import store_folder
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from tests.conftest import random_checkpoint
from tests.scrape import scraped
from tests.servers import RedisServer, Service, read_events

N_MODELS = 4
REQUEST = {"prompt": "hello", "max_chars": 60, "seed": 3, "temperature": 0.9}


def text_of(checkpoint: Checkpoint, n: int = 60, prompt: str = "hello") -> str:
    stepper, _ = choose(checkpoint.network(), 1)
    return "".join(write(stepper, checkpoint.vocab, prompt, n, SamplingParams(0.9), seed=3))


def begin(service: Service, model: Checkpoint) -> str:
    """A session with the first 30 characters of a model's text."""
    answer = service.generate(**REQUEST | {"model": model.fingerprint, "max_chars": 30})
    session_id: str = answer["session_id"]
    return session_id


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Checkpoint]]:
    """A folder of checkpoints, of which the first is promoted."""
    folder = tmp_path_factory.mktemp("models")
    checkpoints = [random_checkpoint(seed=seed) for seed in range(N_MODELS)]
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
    session = begin(service, other)
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
    session = begin(service, other)
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


class Named:
    """Two models with names beside the default one, and a newer checkpoint of the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old, self.new, self.other = (random_checkpoint(seed=seed) for seed in (20, 21, 22))
        self.paths = {
            checkpoint.fingerprint: checkpoint.save(store_folder(folder, name))
            for name, checkpoint in (("names", self.old), ("names", self.new), ("log-lines", self.other))
        }
        registry.promote(self.paths[self.old.fingerprint])
        registry.promote(self.paths[self.other.fingerprint])


@pytest.fixture
def named(models: tuple[Path, list[Checkpoint]]) -> Iterator[Named]:
    yield Named(models[0])
    shutil.rmtree(models[0] / "models", ignore_errors=True)


def test_every_address_takes_a_name(service: Service, named: Named) -> None:
    """The text is that of the name's promoted checkpoint; answers say which one that is."""
    client = service.client
    for name, checkpoint in (("names", named.old), ("log-lines", named.other)):
        answer = client.post("/generate", json={**REQUEST, "model": name}).json()
        assert (answer["text"], answer["model"]["fingerprint"]) == (text_of(checkpoint), checkpoint.fingerprint)
        several = client.post("/generate", json={**REQUEST, "model": name, "n": 2}).json()
        assert several["results"][0]["text"] == text_of(checkpoint)
        completion = {"model": name, "prompt": "hello", "max_tokens": 60, "seed": 3, "temperature": 0.9}
        answer = client.post("/v1/completions", json=completion).json()
        assert (answer["choices"][0]["text"], answer["model"]) == (text_of(checkpoint), name)
        assert answer["system_fingerprint"] == checkpoint.fingerprint
        assert client.get(f"/v1/models/{name}").json()["id"] == name
        for path, body in (("/score", {"text": "hello"}), ("/score", {"text": ["hello"]}), ("/inspect", {"text": "a"})):
            answer = client.post(path, json={**body, "model": name}).json()
            assert answer["model"]["fingerprint"] == checkpoint.fingerprint, path
        assert client.get("/model", params={"model": name}).json()["id"] == checkpoint.fingerprint
        assert client.post("/tokenize", json={"model": name, "prompt": "ab"}).json()["count"] == 2
    assert {"longhand", "names", "log-lines"} <= {model["id"] for model in client.get("/v1/models").json()["data"]}


def test_a_session_remembers_its_model(service: Service, named: Named) -> None:
    """It goes on without a word of the client, is forked and resumed; after a promotion the new checkpoint reads it."""
    client = service.client
    body = {**REQUEST, "model": "names", "max_chars": 30}
    session = client.post("/generate", json=body).json()["session_id"]
    more = {"session_id": session, "max_chars": 30, "temperature": 0.9}
    answer = client.post("/generate", json=more).json()
    assert (answer["text"], answer["reencoded"]) == (text_of(named.old)[30:], False)
    assert client.get(f"/sessions/{session}").json()["model_name"] == "names"
    scored = client.post("/score", json={"text": "a", "session_id": session}).json()
    assert scored["model"]["fingerprint"] == named.old.fingerprint
    fork = client.post(f"/sessions/{session}/fork", json={}).json()["session_id"]
    promoted = client.post(f"/models/{named.new.fingerprint}/promote", json={"model": "names"})
    assert promoted.json()["promoted"]["id"] == named.new.fingerprint
    resumed = service.resume(session)
    assert "".join(e.data["text"] for e in resumed if e.name == "message") == text_of(named.old)[30:]
    for id in (session, fork):
        answer = client.post("/generate", json={**more, "session_id": id}).json()
        assert (answer["model"]["fingerprint"], answer["reencoded"]) == (named.new.fingerprint, True)
    moved = client.post("/generate", json={**more, "model": "log-lines"}).json()
    assert (moved["model"]["fingerprint"], moved["reencoded"]) == (named.other.fingerprint, True)
    assert client.get(f"/sessions/{session}").json()["model_name"] == "log-lines"
    assert client.post("/generate", json=more).json()["model"]["fingerprint"] == named.other.fingerprint


def test_a_name_is_rolled_back_alone(service: Service, named: Named, models: tuple[Path, list[Checkpoint]]) -> None:
    """Each model has a history of its own: the others and the default one stay."""
    client, body = service.client, {**REQUEST, "model": "names"}
    client.post(f"/models/{named.new.fingerprint}/promote", json={"model": "names"})
    assert client.post("/generate", json=body).json()["text"] == text_of(named.new)
    assert client.post("/models/rollback", json={"model": "names"}).json()["promoted"]["id"] == named.old.fingerprint
    assert client.post("/generate", json=body).json()["text"] == text_of(named.old)
    refused = client.post("/models/rollback", json={"model": "log-lines"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_conflict")
    assert client.get("/model").json()["id"] == models[1][0].fingerprint
    other = client.post(f"/models/{named.other.fingerprint}/promote", json={"model": "names"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "unknown_model")


def test_models_are_listed_in_pages(service: Service, named: Named) -> None:
    """With their losses, sizes and whether they are loaded; the default model is the first."""
    client = service.client
    client.post("/generate", json={**REQUEST, "model": "names"})
    first = client.get("/models", params={"limit": 2}).json()
    assert ([model["name"] for model in first["names"]], first["next"]) == (["default", "log-lines"], "log-lines")
    last = client.get("/models", params={"limit": 2, "after": first["next"]}).json()
    (entry,) = last["names"]
    path = named.paths[named.old.fingerprint]
    assert (entry["name"], entry["id"], entry["bytes"]) == ("names", named.old.fingerprint, path.stat().st_size)
    assert (entry["loaded"], entry["val_loss"], last["next"]) == (True, named.old.val_loss, None)
    assert abs(entry["last_used_at"] - time.time()) < 3600
    one = client.get("/models/names").json()
    assert {model["id"] for model in one["models"]} == {named.old.fingerprint, named.new.fingerprint}
    assert client.get("/models", params={"model": "names"}).json()["models"] == one["models"]


def test_a_model_is_deleted_with_its_checkpoints(service: Service, named: Named) -> None:
    """Its sessions say so, and a text that is running ends as if nothing had happened; the default one stays."""
    client = service.client
    large = random_checkpoint(n_hidden=256, seed=24)  # its text takes longer than a request and a deletion
    registry.promote(large.save(store_folder(named.folder, "names")))
    session = client.post("/generate", json={**REQUEST, "model": "names"}).json()["session_id"]
    body = {**REQUEST, "model": "names", "max_chars": 20_000, "stream": True}
    with client.stream("POST", "/generate", json=body) as response:
        events = read_events(response)
        text = next(event for event in events if event.name == "message").data["text"]
        assert client.get("/readyz").json()["in_flight"] == 1
        assert client.delete("/models/names").status_code == 204
        text += "".join(event.data["text"] for event in events if event.name == "message")
    assert text == text_of(large, 20_000)
    assert not (named.folder / "models" / "names").exists()
    for answer in (
        client.post("/generate", json={**REQUEST, "model": "names"}),
        client.post("/generate", json={"session_id": session, "max_chars": 3}),
        client.get("/models/names"),
        client.delete("/models/names"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_model")
    refused = client.delete("/models/default")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_conflict")


def test_loads_and_evictions_are_counted(service: Service, named: Named) -> None:
    """A model that a request needs is one more in memory, and one less when it was deleted."""

    def counts() -> list[float]:
        result = scraped(service.client.get("/metrics").text)
        names = ("models_loaded", "model_load_seconds_count", "model_evictions_total")
        return [result[f"longhand_{name}"] for name in names]

    registry.promote(random_checkpoint(seed=23).save(store_folder(named.folder, "counted")))
    n_loaded, n_loads, n_evicted = counts()
    for _ in range(2):
        service.generate(**{**REQUEST, "model": "counted"})
    assert counts() == [n_loaded + 1, n_loads + 1, n_evicted]
    assert service.client.delete("/models/counted").status_code == 204
    assert counts() == [n_loaded, n_loads + 1, n_evicted + 1]


def test_a_checkpoint_is_uploaded_into_a_name(service: Service, named: Named) -> None:
    """It is promoted by its own request, and comes back as it was sent; what is none is refused and leaves nothing."""
    client, sent = service.client, self_test.record(random_checkpoint(seed=31))
    content = sent.save(named.folder / "models" / "log-lines").read_bytes()
    binary = {"Content-Type": "application/octet-stream"}
    stored = client.put("/models/haiku", content=content, headers=binary)
    assert (stored.status_code, stored.json()["id"]) == (201, sent.fingerprint)
    assert client.post("/generate", json={**REQUEST, "model": "haiku"}).json()["error"]["code"] == "no_model"
    assert client.get("/models/haiku/checkpoint").status_code == 404
    client.post(f"/models/{sent.fingerprint}/promote", json={"model": "haiku"})
    assert client.post("/generate", json={**REQUEST, "model": "haiku"}).json()["text"] == text_of(sent)
    assert client.get("/models/haiku/checkpoint").content == content
    for bad in (content[:-3], b"{}" * 100):
        refused = client.put("/models/broken", content=bad, headers=binary)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "body")
    assert not (named.folder / "models" / "broken").exists()


def test_a_name_that_is_none_is_refused(service: Service, named: Named) -> None:
    """A fingerprint is no name, a path is none; an unknown name is answered with close ones."""
    client = service.client
    for name in ("../names", "Names", "n" * 64, "", "0123456789abcdef"):
        answer = client.post("/retrain", json={"model": name})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "model"), name
        answer = client.post("/models/rollback", json={"model": name})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "model"), name
    for name in ("Names", "n" * 64, "0123456789abcdef"):
        assert client.get(f"/models/{name}").status_code == 422
        assert client.get("/models", params={"model": name}).status_code == 422
    assert client.get("/models", params={"limit": "0"}).status_code == 422
    error = client.post("/generate", json={**REQUEST, "model": "name"}).json()["error"]
    assert (error["code"], error["close"]) == ("unknown_model", ["names"])
    assert "names" in client.post("/v1/completions", json={"model": "name", "prompt": "a"}).json()["error"]["message"]
