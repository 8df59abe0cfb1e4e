"""Every route, every method and every kind of client: who gets through, and with which refusal the others do not.

The routes are read from the application, so that a new route fails here until its guard is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from service.app import create_app
from service.settings import Settings

ADMIN_KEY, API_KEY = "the-operators-key", "a-readers-key-001"
CLIENT, OPERATOR, PUBLIC = "client", "operator", "public"
GUARDS = {
    "/": PUBLIC,
    "/page/<file>": PUBLIC,
    "/docs": PUBLIC,
    "/openapi.json": PUBLIC,
    "/healthz": PUBLIC,
    "/readyz": PUBLIC,
    "/metrics": PUBLIC,
    "/generate": CLIENT,
    "/model": CLIENT,
    "/score": CLIENT,
    "/inspect": CLIENT,
    "/v1/completions": CLIENT,
    "/v1/models": CLIENT,
    "/v1/models/<model>": CLIENT,
    "/tokenize": CLIENT,
    "/detokenize": CLIENT,
    "/tokenizer_info": CLIENT,
    "/sessions/<session_id:session_id>": CLIENT,
    "/sessions/<session_id:session_id>/stream": CLIENT,
    "/sessions/<session_id:session_id>/fork": CLIENT,
    "/retrain": OPERATOR,
    "/jobs": OPERATOR,
    "/jobs/<job_id:job_id>": OPERATOR,
    "/jobs/<job_id:job_id>/events": OPERATOR,
    "/corpora": OPERATOR,
    "/corpora/<corpus_name:name>": OPERATOR,
    "/preview": OPERATOR,
    "/models": OPERATOR,
    "/models/<model_id:model_id>/page": OPERATOR,
    "/models/<model_id:model_id>/report": OPERATOR,
    "/models/<model_id:model_id>/promote": OPERATOR,
    "/models/<model_id:model_id>/file": OPERATOR,
    "/models/rollback": OPERATOR,
    "/models/<model_name:model_name>": OPERATOR,
    "/models/<model_name:model_name>/checkpoint": OPERATOR,
}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
VALUES = {
    "<file>": "main.js",
    "<model>": "longhand",
    "<session_id:session_id>": "x" * 32,
    "<job_id:job_id>": "0123456789abcdef",
    "<corpus_name:name>": "mine",
    "<model_id:model_id>": "0123456789abcdef",
    "<model_name:model_name>": "names",
}


@dataclass(frozen=True)
class Sender:
    """A client, as the service sees it."""

    name: str
    headers: tuple[tuple[str, str], ...] = ()
    network: str = "127.0.0"


SENDERS = {
    sender.name: sender
    for sender in (
        Sender("no key"),
        Sender("wrong key", (("Authorization", "Bearer not-one-of-the-keys"),)),
        Sender("API key", (("Authorization", f"bearer  {API_KEY}"),)),
        Sender("admin key", (("Authorization", f"Bearer {ADMIN_KEY}"),)),
        Sender("foreign Host", (("Host", "evil.example:8000"),)),
        Sender("foreign Origin", (("Origin", "https://evil.example"),)),
        Sender("forwarded", (("X-Forwarded-For", "192.0.2.1"),)),
        Sender("remote", network="192.0.2"),
    )
}
KEYS = {"admin_key": ADMIN_KEY, "api_keys": (API_KEY,)}
SERVERS: dict[str, dict[str, Any]] = {
    "loopback": {},
    "loopback, proxied": {"trusted_proxies": 1},
    "loopback, admin key": {"admin_key": ADMIN_KEY},
    "loopback, keys": KEYS,
    "network": {"host": "0.0.0.0"},
    "network, keys": {"host": "0.0.0.0", **KEYS},
}


def refusal(server: str, sender: str, guard: str) -> int | None:
    """The documented refusal of a request to a route of this guard; None where the client gets through."""
    settings = SERVERS[server]
    has_api_keys, has_admin_key = "api_keys" in settings, "admin_key" in settings
    is_loopback = server.startswith("loopback")
    if is_loopback and not has_api_keys and sender.startswith("foreign"):
        return 403
    if guard == PUBLIC:
        return None
    if guard == CLIENT:
        return 401 if has_api_keys and sender not in ("API key", "admin key") else None
    if has_admin_key:
        return {"admin key": None, "API key": 403 if has_api_keys else 401}.get(sender, 401)
    is_direct = is_loopback and sender not in ("foreign Host", "foreign Origin", "forwarded", "remote")
    return None if is_direct and "trusted_proxies" not in settings else 403


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Flask]]:
    home: Path = tmp_path_factory.mktemp("home")
    app = create_app(Settings.model_validate({"longhand_home": home, **SERVERS[request.param]}))
    yield request.param, app
    app.extensions["drain"].stop_now()


def test_every_route_has_a_guard(served: tuple[str, Flask]) -> None:
    """The table above names all routes and no other."""
    assert {rule.rule for rule in served[1].url_map.iter_rules()} == set(GUARDS)


@pytest.mark.parametrize("sender", SENDERS)
def test_no_combination_answers_otherwise(served: tuple[str, Flask], sender: str) -> None:
    """All routes and methods: a refused client gets 401 or 403, whatever it sends, and the others do not."""
    server, app = served
    allowed: dict[str, set[str]] = {}
    for rule in app.url_map.iter_rules():
        allowed.setdefault(rule.rule, set()).update(rule.methods or ())
    allowed["/models/rollback"] |= allowed["/models/<model_name:model_name>"]  # a model may have this name
    who = SENDERS[sender]
    client = app.test_client()
    for i, ((path, guard), method) in enumerate(itertools.product(GUARDS.items(), METHODS)):
        address = path
        for placeholder, value in VALUES.items():
            address = address.replace(placeholder, value)
        origin = {"REMOTE_ADDR": f"{who.network}.{i + 1}"}  # one each, so that no limit is reached
        answer = client.open(address, method=method, headers=list(who.headers), environ_base=origin)
        expected = refusal(server, sender, guard)
        if method not in allowed[path]:
            assert answer.status_code in {403, 405}, (method, path)
            assert (answer.status_code == 403) == (refusal(server, sender, PUBLIC) == 403), (method, path)
        elif expected is not None:
            assert answer.status_code == expected, (method, path)
        else:
            assert answer.status_code not in {401, 403, 429, 500}, (method, path)
        answer.close()
