"""A new model under running streams, and checkpoints that must not be served."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from model.atomic_files import atomic_write
from model.checkpoints import file_format, registry, self_test
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import store_folder
from model.stepper.choose import choose
from model.stepper.generate import write
from model.text.vocab import Vocabulary
from tests.conftest import ALPHABET, random_checkpoint
from tests.servers import Event, RedisServer, Service, eventually, read_events

STREAMS, PROMOTIONS, CHARS = 16, 5, 2500
HIDDEN = 320  # large enough for a stream to last through a promotion


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer, tiny: Checkpoint
) -> Iterator[tuple[Service, Path]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    registry.promote(tiny.save(folder))
    service = Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url, SLOTS=str(STREAMS + 4))
    service.start()
    yield service, folder
    service.stop()


@pytest.fixture
def folder(begun: tuple[Service, Path], tiny: Checkpoint) -> Path:
    """A folder of checkpoints that a test changes; it begins with the small model promoted, and served."""
    service, folder = begun
    for path in folder.iterdir():
        if path.is_file() and path.name != tiny.file_name:
            path.unlink()
    registry.promote(folder / tiny.file_name)
    eventually(lambda: serving(service) == tiny.fingerprint and readyz(service)["refused_checkpoint"] is None)
    return folder


@pytest.fixture
def swapped(begun: tuple[Service, Path]) -> Service:
    return begun[0]


def readyz(service: Service) -> dict[str, Any]:
    answer: dict[str, Any] = service.client.get("/readyz").json()
    return answer


def serving(service: Service) -> str:
    return str(service.client.get("/readyz").json()["model"]["fingerprint"])


def alone(model: Checkpoint, seed: int) -> str:
    stepper, _ = choose(model.network(), n_slots=1)
    return "".join(write(stepper, ALPHABET, "hello", CHARS, seed=seed))


def test_streams_finish_on_the_model_they_began_with(folder: Path, swapped: Service) -> None:
    """Streams run through promotions: no character changes, no request is refused, and replaced models are freed."""
    before = readyz(swapped)["model_swaps"]
    models = [random_checkpoint(n_hidden=HIDDEN, seed=i + 1) for i in range(PROMOTIONS + 1)]
    by_name = {m.fingerprint: m for m in models}
    paths = [m.save(folder) for m in models]
    registry.promote(paths[0])
    eventually(lambda: serving(swapped) == models[0].fingerprint)
    texts: dict[int, tuple[str, str]] = {}
    statuses: list[int] = []
    begun: list[int] = []
    done = threading.Event()

    def stream(seed: int) -> None:
        body = {"prompt": "hello", "seed": seed, "max_chars": CHARS, "stream": True}
        events: list[Event] = []
        with httpx.stream("POST", f"{swapped.url}/generate", json=body, timeout=120) as response:
            for event in read_events(response):
                if not events:
                    begun.append(seed)
                events.append(event)
        assert events[-1].name == "done"
        text = "".join(e.data["text"] for e in events if e.name == "message")
        texts[seed] = (events[0].data["model"]["fingerprint"], text)

    def ask() -> None:
        with httpx.Client(base_url=swapped.url, timeout=120) as client:
            while not done.is_set():
                statuses.append(client.post("/generate", json={"max_chars": 1}).status_code)

    threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(STREAMS)]
    asker = threading.Thread(target=ask)
    asker.start()
    for thread in threads[: STREAMS // 2]:
        thread.start()
    eventually(lambda: len(begun) == STREAMS // 2)
    for i, path in enumerate(paths[1:]):
        registry.promote(path)
        eventually(lambda m=models[i + 1]: serving(swapped) == m.fingerprint)  # type: ignore[misc]
        for thread in threads[STREAMS // 2 :][i::PROMOTIONS]:
            thread.start()
    for thread in threads:
        thread.join()
    done.set()
    asker.join()
    assert set(statuses) == {200}
    assert len({fingerprint for fingerprint, _ in texts.values()}) > 2
    for seed, (fingerprint, text) in texts.items():
        assert text == alone(by_name[fingerprint], seed)
    eventually(lambda: readyz(swapped)["retired_models"] == 0)
    assert readyz(swapped)["model_swaps"] == before + PROMOTIONS + 1


@pytest.mark.parametrize("begins", [{}, {"model": "other"}, {"session_id": ""}], ids=["default", "named", "session"])
def test_a_request_that_is_repeated_after_a_swap_gets_its_turn_again(
    folder: Path, swapped: Service, begins: dict[str, str]
) -> None:
    """By the checkpoint that began it, although the one that is served now does not even have its characters."""
    store = store_folder(folder, begins.get("model", "default"))
    registry.promote(random_checkpoint(seed=20).save(store))
    if "session_id" in begins:
        begins = {"session_id": swapped.generate(prompt="hello", max_chars=5)["session_id"]}
    body, headers = {"prompt": "hello", "max_chars": 60, **begins}, {"Idempotency-Key": str(uuid.uuid4())}
    first = swapped.client.post("/generate", json=body, headers=headers).json()
    successor = random_checkpoint(seed=30, alphabet=Vocabulary("\nabcd"))
    registry.promote(successor.save(store))
    other = {"prompt": "abc", "max_chars": 1, "model": begins.get("model", "default")}
    eventually(lambda: swapped.generate(**other)["model"]["fingerprint"] == successor.fingerprint)
    again = swapped.client.post("/generate", json=body, headers=headers)
    assert again.status_code == 200, again.text
    same = ("text", "model", "session_id", "position", "seed")
    assert [again.json()[name] for name in same] == [first[name] for name in same]


def broken(folder: Path, kind: str) -> tuple[Path, str]:
    """A checkpoint of this kind of broken, and what is to be said of it."""
    good = random_checkpoint(seed=3)
    if kind == "truncated":
        path = good.save(folder)
        path.write_bytes(path.read_bytes()[:-100])
        return path, "not a complete safetensors file"
    if kind == "foreign":
        path = folder / "foreign.safetensors"
        save_file({"weight": torch.zeros(3)}, path)
        return path, "format is None"
    if kind == "nan":
        weights = {k: v.clone() for k, v in good.weights.items()}
        weights["head.bias"][0] = torch.nan
        return replace(good, weights=weights).save(folder), "head.bias is not all finite"
    if kind == "other text":
        return replace(good, self_test="it was the best of times").save(folder), "self-test: generated"
    return folder / "gone.safetensors", "no such file"


def promote_by_hand(path: Path) -> None:
    """As an operator may who writes promoted.json himself: also a file that does not exist."""
    record = json.loads((path.parent / "promoted.json").read_text())
    record |= {"checkpoint": path.name, "before": [record["checkpoint"], *record["before"]]}
    with atomic_write(path.parent / "promoted.json") as file:
        file.write(json.dumps({**record, "version": record["version"] + 1}).encode())


@pytest.mark.parametrize("kind", ["truncated", "foreign", "nan", "other text", "gone"])
def test_a_checkpoint_that_cannot_be_used_is_refused(
    folder: Path, swapped: Service, tiny: Checkpoint, kind: str
) -> None:
    """Promoted by hand: /readyz has the reason, the old one serves, also after a restart, until a good one comes."""
    path, says = broken(folder, kind)
    if kind not in ("foreign", "gone", "truncated"):
        fingerprint = file_format.read_info(path).fingerprint
        refused = swapped.client.post(f"/models/{fingerprint}/promote", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_conflict")
        assert says in refused.json()["error"]["message"]
    promote_by_hand(path)
    eventually(lambda: readyz(swapped)["refused_checkpoint"] is not None)
    body = readyz(swapped)
    assert body["refused_checkpoint"]["name"] == path.name
    assert says in body["refused_checkpoint"]["reason"]
    assert str(path.parent) not in body["refused_checkpoint"]["reason"]
    assert body["model"]["fingerprint"] == tiny.fingerprint
    assert swapped.generate(max_chars=5)["model"]["fingerprint"] == tiny.fingerprint
    if kind == "nan":
        swapped.stop()
        swapped.start()
        assert serving(swapped) == tiny.fingerprint
        assert says in readyz(swapped)["refused_checkpoint"]["reason"]
    good = self_test.record(random_checkpoint(seed=4))
    registry.promote(good.save(folder))
    eventually(lambda: serving(swapped) == good.fingerprint)
    eventually(lambda: readyz(swapped)["refused_checkpoint"] is None)


def test_a_broken_promotion_is_refused_too(folder: Path, swapped: Service, tiny: Checkpoint) -> None:
    """promoted.json that says nothing, or names a file elsewhere."""
    for text in ("{", json.dumps({"checkpoint": "../../etc/passwd", "before": []})):
        (folder / "promoted.json").write_text(text)
        eventually(lambda: (readyz(swapped)["refused_checkpoint"] or {}).get("name") == "promoted.json")
        assert swapped.generate(max_chars=5)["model"]["fingerprint"] == tiny.fingerprint
        assert swapped.client.get("/models").status_code == 409
        checkpoint_again(folder, tiny)
        eventually(lambda: readyz(swapped)["refused_checkpoint"] is None)


def checkpoint_again(folder: Path, model: Checkpoint) -> None:
    (folder / "promoted.json").unlink()
    registry.promote(folder / model.file_name)


def test_a_promotion_is_seen_without_redis(folder: Path) -> None:
    """The file alone is enough: no message reaches a service that has no Redis."""
    service = Service(CHECKPOINT_DIR=str(folder))
    service.start()
    other = random_checkpoint(seed=2)
    registry.promote(other.save(folder))
    eventually(lambda: serving(service) == other.fingerprint)
    assert service.client.post("/retrain", json={}).status_code == 503  # a line of trainings needs a Redis
    service.stop()
