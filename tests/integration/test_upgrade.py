"""A deployment of an earlier version, which knew one model, starts with today's: its data is that of `default`."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.store.connect import connect
from tests.servers import ROOT, RedisServer, Service

FOLDER = ROOT / "tests/fixtures/deployment_1"
STORED: dict[str, Any] = json.loads((FOLDER / "deployment.json").read_text())
BODY: dict[str, Any] = {"session_id": STORED["session_id"], "max_chars": 30, "temperature": 0.9}
PROMPT = "hello "


@pytest.fixture
def upgraded(tmp_path: Path, redis_server: RedisServer, native_code: None) -> Iterator[Service]:
    """Today's service on the folder of checkpoints and the Redis of the earlier one."""
    folder = shutil.copytree(FOLDER / "checkpoints", tmp_path / "checkpoints")
    client = connect(redis_server.url)
    for key, value in STORED["redis"]["strings"].items():
        client.delete(key)
        client.set(key, base64.b64decode(value))
    for key, fields in STORED["redis"]["hashes"].items():
        client.delete(key)
        client.hset(key, mapping={field: base64.b64decode(value) for field, value in fields.items()})
    client.close()
    with Service(CHECKPOINT_DIR=str(folder), REDIS_URL=redis_server.url) as service:
        yield service


def test_its_sessions_go_on(upgraded: Service) -> None:
    """With the very character that the earlier version would have written next, from its own state; they are forked."""
    client = upgraded.client
    assert client.get(f"/sessions/{STORED['session_id']}").json()["model_name"] == "default"
    fork = client.post(f"/sessions/{STORED['session_id']}/fork", json={"position": len(PROMPT) + 10})
    assert fork.status_code == 201, fork.text
    for session_id, text in (
        (STORED["session_id"], STORED["continued"]),
        (fork.json()["session_id"], (STORED["text"] + STORED["continued"])[10:40]),
    ):
        answer = upgraded.generate(**BODY | {"session_id": session_id})
        assert (answer["text"], answer["reencoded"]) == (text, False)


def test_its_model_is_the_default_one(upgraded: Service) -> None:
    """With both checkpoints and its history: it is listed, answers by name and without one, and can be rolled back."""
    client = upgraded.client
    listed = client.get("/models").json()
    assert [(model["name"], model["id"]) for model in listed["names"]] == [("default", STORED["fingerprint"])]
    assert {model["id"] for model in listed["models"]} == {STORED["fingerprint"], STORED["before"]}
    request = {"prompt": PROMPT, "max_chars": 60, "temperature": 0.9, "seed": 3}
    for named in ({}, {"model": "default"}, {"model": STORED["fingerprint"]}):
        assert upgraded.generate(**request, **named)["text"] == STORED["text"] + STORED["continued"]
    rolled_back = client.post("/models/rollback", json={})
    assert rolled_back.json()["promoted"]["id"] == STORED["before"]
