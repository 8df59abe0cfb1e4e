"""Web pages of other origins, and a path below which a proxy offers the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.integration.application import Application
from tests.servers import RedisServer, Service

ORIGIN, KEY = "https://app.example", "a-readers-key-001"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


@pytest.fixture(scope="module")
def shared(store: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a key, an origin, a path of its own and a proxy."""
    with Service(
        CHECKPOINT_DIR=str(store),
        CORPORA_DIR=str(tmp_path_factory.mktemp("corpora")),
        REDIS_URL=redis_server.url,
        API_KEYS=KEY,
        ADMIN_KEY="the-operators-key",
        CORS_ORIGINS=f"http://localhost:3000,{ORIGIN.replace('app', 'App')}",
        ROOT_PATH="/longhand",
        TRUSTED_PROXIES="1",
    ) as service:
        yield service


def test_a_preflight_needs_no_key(shared: Service) -> None:
    """204 and what the browser asks for; a request without a key is refused, readably for the page."""
    for path in ("/generate", "/v1/completions", "/corpora/mine", "/longhand/generate"):
        answer = shared.client.options(path, headers=PREFLIGHT)
        assert answer.status_code == 204, path
        assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert answer.headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        assert answer.headers["Vary"] == "Origin"
    refused = shared.client.post("/generate", json={}, headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]


def test_a_configured_origin_reads_answers_and_streams(shared: Service) -> None:
    """With its key; nothing allows cookies."""
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {KEY}"}
    for body in ({"max_chars": 3}, {"max_chars": 3, "stream": True}):
        answer = shared.client.post("/generate", json=body, headers=headers)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_an_origin_is_the_same_in_any_case(shared: Service) -> None:
    """The setting has capitals, which browsers do not send; a program that sends some gets its own spelling back."""
    for origin in (ORIGIN, "https://APP.example"):
        answer = shared.client.get("/readyz", headers={"Origin": origin})
        assert answer.headers["Access-Control-Allow-Origin"] == origin


def test_another_origin_gets_nothing(shared: Service, service: Service) -> None:
    """Neither on a service with other origins nor on one with none: its browser refuses the answer."""
    for element in (shared, service):
        for headers in (
            {**PREFLIGHT, "Origin": "https://evil.example"},
            {"Origin": "https://app.example.evil.example"},
        ):
            for method in ("OPTIONS", "GET"):
                answer = element.client.request(method, "/readyz", headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control-allow")]


def test_without_keys_the_configured_origin_is_let_through(store: Path) -> None:
    """On loopback other origins get 403; the configured one generates, but is no operator."""
    with Application(CHECKPOINT_DIR=str(store), CORS_ORIGINS=ORIGIN) as service:
        allowed = service.client.post("/generate", json={"max_chars": 3}, headers={"Origin": ORIGIN})
        assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
        assert service.client.get("/models", headers={"Origin": ORIGIN}).status_code == 403
        other = {"Origin": "https://evil.example"}
        assert service.client.post("/generate", json={"max_chars": 3}, headers=other).status_code == 403


def test_the_path_is_stripped_by_the_proxy_or_here(shared: Service) -> None:
    """Both forms of a request answer; the page's links are relative, and a missing slash is added."""
    for path in ("/longhand/readyz", "/readyz", "/longhand/page/main.js", "/longhand/"):
        assert shared.client.get(path).status_code == 200, path
    bare = shared.client.get("/longhand")
    assert (bare.status_code, bare.headers["Location"]) == (308, "/longhand/")
    assert shared.client.get("/longhandle/readyz").status_code == 404
    for file in ("", "page/main.js", "page/api.js"):
        text = shared.client.get(f"/longhand/{file}").text
        assert not [mark for mark in ('href="/', 'src="/', 'from "/') if mark in text]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "/longhand"),
        ({"X-Forwarded-Prefix": "/text/lm"}, "/text/lm"),
        ({"X-Forwarded-Prefix": "//evil.example"}, "/longhand"),
    ],
)
def test_addresses_begin_with_the_path(shared: Service, headers: dict[str, str], expected: str) -> None:
    """The setting's, or that of the trusted proxy if it is a path."""
    answer = shared.client.put(
        "/corpora/mine", content="so it is\n" * 50, headers={**headers, "Authorization": "Bearer the-operators-key"}
    )
    assert answer.status_code in (200, 201), answer.text
    assert answer.headers["Location"] == f"{expected}/corpora/mine"


def test_a_path_from_anyone_counts_for_nothing(service: Service, store: Path) -> None:
    """Without TRUSTED_PROXIES the header is ignored."""
    answer = httpx.get(f"{service.url}/text/readyz", headers={"X-Forwarded-Prefix": "/text"})
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cors_origins", "app.example"), ("cors_origins", "https://app.example/"), ("cors_origins", "*"),
        ("cors_origins", "null"), ("root_path", "longhand"), ("root_path", "//evil"), ("root_path", "/a b"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_used(name: str, value: str) -> None:
    """An error that names the setting."""
    with pytest.raises(ValueError, match=name):
        Settings.model_validate({name: value})


def test_values_that_can() -> None:
    """A slash at the end of the path is dropped; every origin needs a key."""
    assert Settings.model_validate({"root_path": "/longhand/"}).root_path == "/longhand"
    settings = Settings.model_validate({"cors_origins": "*", "api_keys": KEY})
    assert settings.cors_origins == ("*",)
    assert Settings.model_validate({"cors_origins": "HTTPS://App.Example"}).cors_origins == ("https://app.example",)
    assert Settings.model_validate({"allowed_hosts": "Box.Example"}).allowed_hosts == ("box.example",)
