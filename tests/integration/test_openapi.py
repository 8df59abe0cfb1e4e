"""The description of the API: valid, complete, and that of the routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from service.app import create_app
from service.errors import ServiceError
from service.openapi.document import Limits, document
from service.openapi.operations import OPERATIONS
from service.settings import Settings
from tests.integration.test_routes import GUARDS
from tests.servers import ROOT


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
    found: dict[str, Any] = answer.get_json()
    return found


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
    text = answer.get_data(as_text=True) + (ROOT / "service/page/docs.js").read_text()
    assert not re.findall(r"https?://", text)
