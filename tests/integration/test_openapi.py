"""The description of the API: valid, complete, and that of the routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.app import create_app
from service.errors import ServiceError
from service.generation import rewind
from service.jobs.record import record_key
from service.openapi import document as openapi_document
from service.openapi.document import Limits, document
from service.openapi.operations import OPERATIONS
from service.settings import Settings
from service.store.connect import connect
from tests.conftest import ENDLESS_CHARS
from tests.integration.test_routes import GUARDS
from tests.servers import ROOT, RedisServer, eventually


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    app = create_app(Settings.model_validate({"longhand_home": tmp_path_factory.mktemp("home"), "max_chars": 777}))
    yield app
    app.extensions["drain"].stop_now()


@pytest.fixture(scope="module")
def api(app: Flask) -> dict[str, Any]:
    """The document as a client gets it."""
    answer = app.test_client().get("/openapi.json")
    assert answer.status_code == 200
    result: dict[str, Any] = answer.get_json()
    return result


def test_the_official_validator_accepts_it(api: dict[str, Any]) -> None:
    """OpenAPI 3.1, and the validator refuses one with a mistake."""
    OpenAPIV31SpecValidator(api).validate()
    assert api["openapi"] == "3.1.0"
    broken = {**api, "paths": {**api["paths"], "/healthz": {"get": {"responses": {"200": {}}}}}}
    with pytest.raises(Exception, match="description"):
        OpenAPIV31SpecValidator(broken).validate()


def test_it_is_the_applications_routes(app: Flask, api: dict[str, Any]) -> None:
    """Every method of every route is described, and nothing else; the keys are those that the routes ask for."""
    routes, keys = set(), {}
    for rule in app.url_map.iter_rules():
        path = re.sub(r"<(?:[^<>]*:)?([^<>:]+)>", r"{\1}", rule.rule)
        routes |= {(method.lower(), path) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
        keys[path] = GUARDS[rule.rule]
    assert {(method, path) for path, methods in api["paths"].items() for method in methods} == routes
    for path, methods in api["paths"].items():
        for operation in methods.values():
            named = {name for requirement in operation["security"] for name in requirement}
            assert named == {"public": set(), "client": {"api_key", "admin_key"}, "operator": {"admin_key"}}[keys[path]]


def test_every_error_is_described(api: dict[str, Any]) -> None:
    """Each class of error has a status that some operation names."""

    def statuses(cls: type[ServiceError]) -> set[int]:
        return {cls.status}.union(*(statuses(subclass) for subclass in cls.__subclasses__()))

    named = {
        int(s) for methods in api["paths"].values() for operation in methods.values() for s in operation["responses"]
    }
    assert statuses(ServiceError) <= named


def test_the_statuses_of_damage_and_of_a_full_server_are_described(
    store: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged job is a 409; a fork that waits for a slot for too long is a 504. The document has both."""
    monkeypatch.setattr(rewind, "_TIMEOUT_S", 0.2)
    settings = {"checkpoint_dir": store, "redis_url": redis_server.url, "slots": 1, "max_chars": ENDLESS_CHARS}
    app = create_app(Settings.model_validate(settings))
    client = app.test_client()
    try:
        eventually(lambda: client.get("/readyz").status_code == 200)
        session_id = client.post("/generate", json={"max_chars": 9}).get_json()["session_id"]
        job_id = "0123456789abcdef"
        with closing(connect(redis_server.url)) as redis:
            redis.hset(record_key(job_id), "request", "[]")
            answers = [
                ("/jobs/{job_id}", client.get(f"/jobs/{job_id}")),
                ("/jobs/{job_id}/events", client.get(f"/jobs/{job_id}/events")),
            ]
            redis.delete(record_key(job_id))
        assert [answer.status_code for _, answer in answers] == [409, 409]
        with client.post("/generate", json={"max_chars": ENDLESS_CHARS, "stream": True}, buffered=False):
            fork = client.post(f"/sessions/{session_id}/fork", json={"position": 5})
            answers.append(("/sessions/{session_id}/fork", fork))
        assert fork.status_code == 504
        paths = client.get("/openapi.json").get_json()["paths"]
        for path, answer in answers:
            assert str(answer.status_code) in paths[path][answer.request.method.lower()]["responses"], path
    finally:
        app.extensions["drain"].stop_now()


def test_the_document_is_made_once(app: Flask, api: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request, also one by another path, gets what was made for the first one."""
    monkeypatch.delattr(openapi_document, "models_json_schema")
    assert app.test_client().get("/openapi.json").get_json() == api
    below = app.test_client().get("/openapi.json", environ_overrides={"SCRIPT_NAME": "/longhand"}).get_json()
    assert below == {**api, "servers": [{"url": "/longhand"}]}


def test_every_link_leads_somewhere(api: dict[str, Any]) -> None:
    """It names an operation, and one of its parameters or a field of its body."""
    operations = {o["operationId"]: o for methods in api["paths"].values() for o in methods.values()}
    links = [
        link
        for operation in operations.values()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert len(links) > 10
    for link in links:
        target = operations[link["operationId"]]
        assert set(link.get("parameters", {})) <= {p["name"] for p in target.get("parameters", ())}
        if "requestBody" in link:
            name = target["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert set(link["requestBody"]) <= set(api["components"]["schemas"][name]["properties"])


def test_every_example_is_valid(api: dict[str, Any]) -> None:
    """Bodies, answers and errors have examples, and their schemas accept them."""
    n_examples = 0
    for methods in api["paths"].values():
        for operation in methods.values():
            for described in [operation.get("requestBody", {}), *operation["responses"].values()]:
                content = described.get("content", {}).get("application/json", {})
                if "$ref" in content.get("schema", {}):
                    schema = {**content["schema"], "components": api["components"]}
                    OAS31Validator(schema).validate(content["example"])
                    n_examples += 1
    assert n_examples > 100


def test_the_limits_are_the_servers(api: dict[str, Any]) -> None:
    """max_chars of this server is the largest that the document allows."""
    properties = api["components"]["schemas"]["GenerateRequest"]["properties"]
    assert properties["max_chars"]["maximum"] == 777
    assert api["servers"] == [{"url": "/"}]
    assert document(Limits(1, 1), "/longhand")["servers"] == [{"url": "/longhand"}]


def test_operations_have_names_of_their_own() -> None:
    """Code generators make a function of each."""
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


def test_the_page_loads_nothing_from_another_host(app: Flask) -> None:
    """GET /docs: its files come from here, and its policy allows no other source."""
    answer = app.test_client().get("/docs")
    assert answer.mimetype == "text/html"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    text = answer.get_data(as_text=True) + (ROOT / "service/page/docs/docs.js").read_text()
    assert not re.findall(r"https?://", text)
