"""The operator's routes, and every wrong request to them."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from tests.conftest import random_checkpoint
from tests.servers import SECRET, RedisServer, Service

ADMIN, API = "the-operators-key", "a-readers-key-001"
ADMIN_ROUTES = [
    ("POST", "/retrain"),
    ("GET", "/jobs"),
    ("GET", "/jobs/0123456789abcdef"),
    ("GET", "/jobs/0123456789abcdef/events"),
    ("DELETE", "/jobs/0123456789abcdef"),
    ("GET", "/corpora"),
    ("GET", "/corpora/shakespeare"),
    ("PUT", "/corpora/mine"),
    ("DELETE", "/corpora/mine"),
    ("GET", "/models"),
    ("POST", "/models/0123456789abcdef/promote"),
    ("POST", "/models/rollback"),
]


@pytest.fixture(scope="module")
def guarded(
    store: Path, redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, Path]]:
    """A service with keys, a rate limit and a small limit on corpora; and its folder of corpora."""
    corpora = tmp_path_factory.mktemp("corpora")
    service = Service(
        CHECKPOINT_DIR=str(store),
        REDIS_URL=redis_server.url,
        CORPORA_DIR=str(corpora),
        ADMIN_KEY=ADMIN,
        API_KEYS=f"{API}, another-readers-key",
        RATE_LIMIT="5/hour",
        MAX_CORPUS_BYTES="100000",
    )
    service.start()
    yield service, corpora
    service.stop()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_an_operators_route_needs_the_operators_key(guarded: tuple[Service, Path], method: str, path: str) -> None:
    """Without a key 401 and how to send one, with an API key 403, with the right key neither."""
    client = guarded[0].client
    without = client.request(method, path)
    assert (without.status_code, without.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert without.json()["error"]["code"] == "unauthorized"
    wrong = client.request(method, path, headers=bearer(API))
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (403, "forbidden")
    assert client.request(method, path, headers=bearer(ADMIN)).status_code not in (401, 403)


def test_generation_needs_a_key_and_has_a_rate_limit(guarded: tuple[Service, Path]) -> None:
    """Sessions and inspection too; health and the page never. Each key has its rate; a refusal says when to retry."""
    client = guarded[0].client
    assert client.get("/readyz").status_code == client.get("/healthz").status_code == client.get("/").status_code == 200
    assert client.post("/generate", json={"max_chars": 1}).status_code == 401
    assert client.get(f"/sessions/{'x' * 32}").status_code == 401
    for path in ("/score", "/inspect"):
        assert client.post(path, json={"text": "a"}).status_code == 401
    assert client.post("/generate", json={"max_chars": 1}, headers=bearer("not-one-of-the-keys")).status_code == 401
    statuses = [client.post("/generate", json={"max_chars": 1}, headers=bearer(API)).status_code for _ in range(5)]
    assert statuses == [200] * 5
    refused = client.post("/generate", json={"max_chars": 1}, headers=bearer(API))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["Retry-After"]) <= 3600
    assert client.get(f"/sessions/{'x' * 32}", headers=bearer("another-readers-key")).status_code == 404


def test_without_a_key_operating_is_for_loopback(service: Service) -> None:
    """Open on loopback, but not to a web page whose host name resolves to it, nor to a web page's form."""
    assert service.client.get("/models").status_code == 200
    for host in ("evil.example", f"evil.example:{service.port}"):
        refused = service.client.get("/models", headers={"Host": host})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    form = service.client.post("/models/rollback", content=b"{}", headers={"Content-Type": "text/plain"})
    assert form.status_code == 415


def test_without_a_key_other_sites_read_nothing(store: Path) -> None:
    """A page whose name resolves to loopback, or whose script sends here, is refused on every route; ALLOWED_HOSTS."""
    with Service(CHECKPOINT_DIR=str(store), ALLOWED_HOSTS="box.example") as local:
        foreign = [{"Host": "evil.example"}, {"Host": f"evil.example:{local.port}"}, {"Origin": "https://evil.example"}]
        for headers in foreign:
            for method, path in [*ADMIN_ROUTES, ("POST", "/generate"), ("POST", "/score"), ("POST", "/inspect")]:
                refused = local.client.request(method, path, headers=headers, json={"text": "a"})
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
            for path in ("/", "/readyz", "/metrics", f"/sessions/{'x' * 32}", "/page/main.js", "/nowhere"):
                assert local.client.get(path, headers=headers).status_code == 403
        for allowed in ({"Host": "box.example"}, {"Origin": f"http://127.0.0.1:{local.port}"}):
            assert local.client.post("/generate", json={"max_chars": 1}, headers=allowed).status_code == 200


def test_without_a_key_nobody_operates_through_a_proxy(store: Path, tmp_path: Path) -> None:
    """A proxy connects over loopback for clients anywhere: with trusted proxies, or with a header of any, 403."""
    with Service(CHECKPOINT_DIR=str(store), CORPORA_DIR=str(tmp_path), TRUSTED_PROXIES="1") as proxied:
        for headers in ({"X-Forwarded-For": "192.0.2.1", "Host": "localhost"}, {"Host": "localhost"}):
            assert proxied.client.put("/corpora/mine", content="a text", headers=headers).status_code == 403
    with Service(CHECKPOINT_DIR=str(store), CORPORA_DIR=str(tmp_path)) as direct:
        for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"):
            assert direct.client.put("/corpora/mine", content="a text", headers={name: "x"}).status_code == 403
        assert direct.client.put("/corpora/mine", content="a text").status_code == 201


def test_one_key_has_one_rate_however_it_is_written(store: Path) -> None:
    """The case of the scheme and the spaces make no other client."""
    with Service(CHECKPOINT_DIR=str(store), API_KEYS=API, RATE_LIMIT="2/hour") as limited:
        headers = [f"Bearer {API}", f"bearer {API}", f"BEARER {API}", f"Bearer   {API}"]
        sent = [
            limited.client.post("/generate", json={"max_chars": 1}, headers={"Authorization": header})
            for header in headers
        ]
    assert [answer.status_code for answer in sent] == [200, 200, 429, 429]


def test_only_requests_that_compute_are_counted(store: Path, tmp_path: Path) -> None:
    """Neither descriptions nor what is refused: a wrong key, a wrong body, a model that the key may not use."""
    path = tmp_path / "keys.json"
    entry = {"name": "shop", "sha256": hashlib.sha256(API.encode()).hexdigest(), "models": ["default"]}
    path.write_text(json.dumps({"keys": [{**entry, "rate": "5/hour"}]}))
    with Service(CHECKPOINT_DIR=str(store), API_KEYS_FILE=str(path)) as limited:

        def status(method: str, path: str, body: Any = None, key: str = API) -> int:
            return limited.client.request(method, path, json=body, headers=bearer(key)).status_code

        for _ in range(3):
            assert status("GET", "/model") == status("GET", "/v1/models") == 200
            assert status("POST", "/tokenize", {"prompt": "a"}) == 200
            assert status("POST", "/generate", {"max_chars": 1, "model": "others"}) == 403
            assert status("POST", "/v1/completions", {"prompt": "a", "model": "others"}) == 403
            assert status("POST", "/generate", {"max_chars": -1}) == 422
            assert status("POST", "/generate", {"max_chars": 1}, "not-one-of-the-keys") == 401
        answer = limited.client.post("/generate", json={"prompt": "a", "max_chars": 1}, headers=bearer(API))
        assert answer.status_code == 200
        session = answer.json()["session_id"]
        assert status("GET", f"/sessions/{session}") == status("HEAD", f"/sessions/{session}/stream") == 200
        assert status("POST", "/score", {"text": "a"}) == status("POST", "/inspect", {"text": "a"}) == 200
        assert status("POST", "/v1/completions", {"prompt": "a", "max_tokens": 1, "model": "longhand"}) == 200
        assert status("POST", f"/sessions/{session}/fork", {}) == 201
        for path_, body in (("/generate", {"max_chars": 1}), ("/score", {"text": "a"}), ("/inspect", {"text": "a"})):
            assert status("POST", path_, body) == 429
        assert status("GET", "/model") == 200


def test_keys_of_a_file_come_and_go_while_it_serves(store: Path, tmp_path: Path, redis_server: RedisServer) -> None:
    """Each has a rate of its own, counted over both workers; one that is removed opens nothing any more."""
    path = tmp_path / "keys.json"

    def write(*names: str) -> None:
        keys = [{"name": n, "sha256": hashlib.sha256(f"{SECRET}-{n}".encode()).hexdigest()} for n in names]
        path.write_text(json.dumps({"keys": [{**key, "rate": "6/hour"} for key in keys]}))

    write("one", "two")
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis_server.url, "API_KEYS": API, "RATE_LIMIT": "2/hour"}
    with Service(**settings, API_KEYS_FILE=str(path), WORKERS="2") as service:

        def answers(key: str, count: int) -> list[int]:
            headers = {"Authorization": f"Bearer {key}", "Connection": "close"}
            return [
                service.client.post("/generate", json={"max_chars": 1}, headers=headers).status_code
                for _ in range(count)
            ]

        assert answers(f"{SECRET}-one", 8) == [200] * 6 + [429] * 2
        assert answers(API, 3) == [200, 200, 429]
        assert answers(f"{SECRET}-two", 1) == [200]
        write("one", "three")
        assert answers(f"{SECRET}-two", 4) == [401] * 4
        assert answers(f"{SECRET}-three", 4) == [200] * 4
        path.write_text("{")
        assert answers(f"{SECRET}-one", 4) == [429] * 4  # known to both workers, whichever of them has read "three"
        log = service.output()
    assert f"API_KEYS_FILE={str(path)!r}: Expecting property name enclosed in double quotes: line 1 column 2" in log
    assert "the keys that were read before stay valid" in log


def test_without_a_key_an_open_network_cannot_operate(store: Path) -> None:
    """HOST=0.0.0.0 and no ADMIN_KEY: every operator's route answers 403, and generation works."""
    service = Service(CHECKPOINT_DIR=str(store))
    service._environment["HOST"] = "0.0.0.0"
    service.start()
    for method, path in ADMIN_ROUTES:
        refused = service.client.request(method, path, json={} if method == "POST" else None)
        assert refused.status_code == 403
        assert "ADMIN_KEY" in refused.json()["error"]["message"]
    assert service.post(max_chars=1).status_code == 200
    assert "warning HOST=0.0.0.0: there are no API_KEYS, so whoever reaches port" in service.output()
    service.stop()


def test_the_log_says_who_trained_and_promoted(tiny: Checkpoint, tmp_path: Path, redis_server: RedisServer) -> None:
    """A training, a promotion and a roll back are a line each, with the key's name and the address, without the key."""
    registry.promote(tiny.save(tmp_path))
    other = random_checkpoint(seed=9)
    other.save(tmp_path)
    corpora = tmp_path / "corpora"
    corpora.mkdir()
    (corpora / "tea").write_text("tea and coffee\n" * 1000)
    settings = {"CHECKPOINT_DIR": str(tmp_path), "CORPORA_DIR": str(corpora), "REDIS_URL": redis_server.url}
    with Service(**settings, ADMIN_KEY=ADMIN) as service:
        body = {"model": "mine", "corpus": "tea"}
        queued = service.client.post("/retrain", json=body, headers=bearer(ADMIN))
        assert queued.status_code == 202, queued.text
        job = queued.json()["job_id"]
        assert service.client.delete(f"/jobs/{job}", headers=bearer(ADMIN)).status_code == 202
        for path in (f"/models/{other.fingerprint}/promote", "/models/rollback"):
            assert service.client.post(path, json={}, headers=bearer(ADMIN)).status_code == 200
        assert service.client.post(f"/models/{other.fingerprint}/promote", json={}).status_code == 401
        log = service.output()
    assert log.count("promoted ") == 1
    assert f"queued the training {job} of the model mine, by ADMIN_KEY from 127.0.0.1" in log
    assert f"promoted {other.fingerprint} of the model default, by ADMIN_KEY from 127.0.0.1" in log
    assert f"rolled the model default back to {tiny.fingerprint}, by ADMIN_KEY from 127.0.0.1" in log
    assert ADMIN not in log


@pytest.mark.parametrize(
    "path", ["..%2Fx", "%2e%2e/x", "a%2F..%2F..%2Fx", ".hidden", "A", "a%00", "a%0Ab", "a%0A", "x" * 65, "%C3%A9"]
)
def test_a_name_that_could_leave_the_folder(guarded: tuple[Service, Path], path: str) -> None:
    """422 with the name and its pattern, though the address is sent unnormalized; nothing is written anywhere."""
    service, corpora = guarded
    body = b"some text"
    head = (
        f"PUT /corpora/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ADMIN}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as s:
        s.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.1 422 ")
    assert '"field":"name"' in answer
    assert not [p for p in [*corpora.iterdir(), *corpora.parent.glob("x*")] if p.name != "shakespeare"]


def test_a_corpus_is_stored_replaced_and_deleted(guarded: tuple[Service, Path]) -> None:
    """201 for a new name, 200 for a replaced one, 409 when it had to be new; its statistics; deleted."""
    service, corpora = guarded
    with httpx.Client(base_url=service.url, headers=bearer(ADMIN)) as client:
        created = client.put("/corpora/mine", content="a text\r\nof two lines\n")
        assert (created.status_code, created.headers["Location"]) == (201, "/corpora/mine")
        assert created.json()["notes"] == ["line ends became \\n (1 CR LF, 0 CR)"]
        assert (created.json()["characters"], created.json()["bytes"]) == (20, 21)
        conflict = client.put("/corpora/mine", content="other", headers={"If-None-Match": "*"})
        assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "corpus_conflict")
        assert client.put("/corpora/mine", content="other").status_code == 200
        assert client.get("/corpora/mine").json()["bytes"] == 5
        assert [c["name"] for c in client.get("/corpora").json()["corpora"]] == ["shakespeare", "mine"]
        assert client.put("/corpora/shakespeare", content="other").status_code == 409
        for wrong, says in ((b"abc\xffdef", "byte 3 is 0xff"), (b"", "is empty"), (b"\xff\xfea\0", "is UTF-16")):
            refused = client.put("/corpora/wrong", content=wrong)
            assert (refused.status_code, refused.json()["error"]["field"]) == (422, "body")
            assert says in refused.json()["error"]["message"]
        assert client.get("/corpora/wrong").status_code == 404
        assert client.delete("/corpora/mine").status_code == 204
        assert client.delete("/corpora/mine").status_code == 404
        assert list(corpora.iterdir()) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_gigabyte_is_refused_before_it_is_read(guarded: tuple[Service, Path], chunked: bool) -> None:
    """413 with the limit, long before the whole body was sent; nothing is left; the service continues."""
    service, corpora = guarded
    sent = 0

    def gigabyte() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(16384):
            sent += 1 << 16
            yield b"a" * (1 << 16)

    headers = bearer(ADMIN) if chunked else {**bearer(ADMIN), "Content-Length": str(1 << 30)}
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as client:
        refused = client.put("/corpora/big", content=gigabyte())
    assert refused.status_code == 413
    assert refused.json()["error"]["expected"] == "at most 100000 bytes"
    assert sent < 1 << 28
    assert list(corpora.iterdir()) == []
    assert service.client.get("/healthz").status_code == 200


@pytest.mark.parametrize("length", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_an_interrupted_upload_leaves_nothing(guarded: tuple[Service, Path], length: str) -> None:
    """Half a body, then a closed connection: no part of it is stored under any name."""
    service, corpora = guarded
    head = f"PUT /corpora/half HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN}\r\n{length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as s:
        s.sendall(head.encode() + (b"1f4\r\n" if "chunked" in length else b"") + b"a" * 500)
        s.shutdown(socket.SHUT_WR)
        s.recv(65536)
    assert service.client.get("/corpora/half", headers=bearer(ADMIN)).status_code == 404
    assert list(corpora.iterdir()) == []


def test_models_are_listed_and_unknown_ones_refused(guarded: tuple[Service, Path], tiny: Checkpoint) -> None:
    """The list; 404 for an unknown fingerprint, 422 for one of another form, 409 without a predecessor."""
    with httpx.Client(base_url=guarded[0].url, headers=bearer(ADMIN)) as client:
        (only,) = client.get("/models").json()["models"]
        assert (only["id"], only["promoted"], only["predecessor"]) == (tiny.fingerprint, True, False)
        assert only["val_loss"] == tiny.val_loss
        assert client.post("/models/0123456789abcdef/promote", json={}).status_code == 404
        assert client.post("/models/nope/promote", json={}).status_code == 422
        assert client.post("/models/rollback", json={"to": 1}).status_code == 422
        refused = client.post("/models/rollback", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_conflict")
