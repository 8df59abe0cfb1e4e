"""A key that is bound to one model: that model answers it, and no other does, on any address, however it is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoints import registry
from model.checkpoints.names import store_folder
from service.openapi.operations import OPERATIONS, Guard
from tests.conftest import random_checkpoint
from tests.servers import SECRET, RedisServer, Service

KEY, UNBOUND = f"{SECRET}-of-names", f"{SECRET}-of-all"
SEEDS = {"default": 1, "names": 2, "logs": 3}
FINGERPRINTS = {name: random_checkpoint(seed=seed).fingerprint for name, seed in SEEDS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of checkpoints."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def service(root: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service with three models, a key for all of them, and one for `names`."""
    for name, seed in SEEDS.items():
        folder = store_folder(root, name)
        folder.mkdir(parents=True, exist_ok=True)
        registry.promote(random_checkpoint(seed=seed).save(folder))
    digests = {key: hashlib.sha256(key.encode()).hexdigest() for key in (KEY, UNBOUND)}
    keys = [{"name": "all", "sha256": digests[UNBOUND]}, {"name": "one", "sha256": digests[KEY], "models": ["names"]}]
    path = root / "keys.json"
    path.write_text(json.dumps({"keys": keys}))
    settings = {"CHECKPOINT_DIR": str(root), "REDIS_URL": redis_server.url, "API_KEYS_FILE": str(path)}
    with Service(**settings) as service:
        yield service


def client_of(service: Service, key: str) -> httpx.Client:
    return httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)


@pytest.fixture
def bound(service: Service) -> Iterator[httpx.Client]:
    with client_of(service, KEY) as client:
        yield client


@pytest.fixture
def sessions(service: Service) -> dict[str, str]:
    """A session of each model."""
    result = {}
    with client_of(service, UNBOUND) as client:
        for name in SEEDS:
            answer = client.post("/generate", json={"prompt": "hello", "max_chars": 5, "model": name}).json()
            result[name] = answer["session_id"]
    return result


Request = tuple[str, str, dict[str, Any] | None]


def requests_of(model: str | None, session: str) -> dict[str, list[Request]]:
    """By operation: the requests that use a model, named in the request (None: not), or by its session."""
    named = {} if model is None else {"model": model}
    query = "" if model is None else f"?model={model}"
    v1 = {"model": model or "longhand"}
    return {
        "fork_session": [
            ("POST", f"/sessions/{session}/fork", {}),
            ("POST", f"/sessions/{session}/fork", {"position": 6}),
        ],
        "generate": [
            ("POST", "/generate", {"max_chars": 1, **named}),
            ("POST", "/generate", {"max_chars": 1, "stream": True, **named}),
            ("POST", "/generate", {"max_chars": 1, "n": 2, **named}),
            ("POST", "/generate", {"max_chars": 1, "session_id": session}),
            ("POST", "/generate", {"max_chars": 1, "session_id": session, **named}),
        ],
        "get_session": [("GET", f"/sessions/{session}", None)],
        "resume_stream": [
            ("GET", f"/sessions/{session}/stream", None),
            ("GET", f"/sessions/{session}/stream{query}", None),
            ("HEAD", f"/sessions/{session}/stream", None),
        ],
        "describe_model": [("GET", f"/model{query}", None)],
        "score": [
            ("POST", "/score", {"text": "hello", **named}),
            ("POST", "/score", {"text": ["hello", "is"], **named}),
            ("POST", "/score", {"text": "hello", "session_id": session}),
        ],
        "inspect": [("POST", "/inspect", {"text": "hello", **named})],
        "create_completion": [
            ("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 1, **v1}),
            ("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 1, "stream": True, **v1}),
            ("POST", "/v1/completions", {"prompt": "hello", "max_tokens": 0, "echo": True, "logprobs": 1, **v1}),
        ],
        "get_openai_model": [("GET", f"/v1/models/{v1['model']}", None)],
        "tokenize": [("POST", "/tokenize", {"prompt": "hello", **named})],
        "detokenize": [("POST", "/detokenize", {"tokens": [1], **named})],
        "tokenizer_info": [("GET", f"/tokenizer_info{query}", None)],
        "list_openai_models": [],
        "delete_session": [("DELETE", f"/sessions/{session}", None)],
    }


def test_the_table_has_every_operation_of_clients() -> None:
    """One that is added must be here."""
    assert set(requests_of(None, "")) == {o.name for o in OPERATIONS if o.guard is Guard.CLIENT}


@pytest.mark.parametrize("way", ["by name", "by fingerprint", "by nothing"])
@pytest.mark.parametrize("operation", requests_of(None, ""))
def test_another_model_is_forbidden(bound: httpx.Client, sessions: dict[str, str], operation: str, way: str) -> None:
    """403, whatever exists, and nothing of the other model's session is changed."""
    other = "default" if way == "by nothing" else "logs"
    model = {"by name": other, "by fingerprint": FINGERPRINTS[other], "by nothing": None}[way]
    for method, path, body in requests_of(model, sessions[other])[operation]:
        refused = bound.request(method, path, json=body)
        assert refused.status_code == 403, (method, path, body, refused.text)
        if method != "HEAD":
            assert refused.json()["error"]["code"] == "model_not_allowed"
            assert "names" in refused.json()["error"]["message"]


@pytest.mark.parametrize("model", ["names", FINGERPRINTS["names"]])
def test_its_own_model_answers(bound: httpx.Client, sessions: dict[str, str], model: str) -> None:
    """Under its name and its fingerprint, and in its sessions."""
    for requests in requests_of(model, sessions["names"]).values():
        for method, path, body in requests:
            answer = bound.request(method, path, json=body)
            assert answer.status_code in (200, 201, 204), (method, path, body, answer.text)


def test_a_session_of_a_checkpoint_goes_on_under_the_name_of_its_model(bound: httpx.Client) -> None:
    """The key may use that name, and may not use the default one."""
    begun = bound.post("/generate", json={"max_chars": 4, "model": FINGERPRINTS["names"]}).json()
    session = begun["session_id"]
    assert bound.get(f"/sessions/{session}").json()["model_name"] == "names"
    for more in ({}, {"model": FINGERPRINTS["names"]}, {"model": "names"}):
        answer = bound.post("/generate", json={"max_chars": 4, "session_id": session, **more})
        assert (answer.status_code, answer.json()["reencoded"]) == (200, False)
    assert bound.delete(f"/sessions/{session}").status_code == 204


def test_a_text_of_a_checkpoint_that_is_gone_is_not_forbidden(bound: httpx.Client, root: Path) -> None:
    """Its key may use the model, which has another checkpoint now: a conflict, as for every client."""
    checkpoint = random_checkpoint(seed=9)
    path = checkpoint.save(store_folder(root, "names"))
    begun = bound.post("/generate", json={"max_chars": 9, "model": checkpoint.fingerprint}).json()
    path.unlink()
    refused = bound.get(f"/sessions/{begun['session_id']}/stream?from=2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_changed")


def test_no_other_model_is_seen(bound: httpx.Client, service: Service) -> None:
    """The list has its own; the refusal of one that does not exist is that of one that does."""
    assert [entry["id"] for entry in bound.get("/v1/models").json()["data"]] == ["names"]
    with client_of(service, UNBOUND) as client:
        assert {"longhand", "names", "logs"} <= {entry["id"] for entry in client.get("/v1/models").json()["data"]}
    for model in ("logs", "log", "0" * 16):
        refused = bound.post("/generate", json={"max_chars": 1, "model": model})
        assert refused.json()["error"]["message"] == f"this key may not use the model {model!r}; it may use: names"


def test_a_session_that_does_not_exist_is_unknown(bound: httpx.Client) -> None:
    """Whoever asks."""
    session = "s" * 32
    for method, path, body in (
        ("POST", "/generate", {"max_chars": 1, "session_id": session}),
        ("GET", f"/sessions/{session}", None),
        ("DELETE", f"/sessions/{session}", None),
        ("POST", f"/sessions/{session}/fork", {}),
    ):
        refused = bound.request(method, path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_session"), path
