"""Checkpoints to and from a server: PUT and GET /models/{id}/file, export --to and import --from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoints import registry, self_test
from model.checkpoints.file_format import load
from model.cli import main
from model.export.page.render import to_page
from tests.conftest import random_checkpoint
from tests.servers import RedisServer, Service, eventually

KEY = "the-operators-key"
BINARY = {"Content-Type": "application/octet-stream"}
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's checkpoints."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path, redis_server: RedisServer) -> Iterator[Service]:
    """A service with a key and a folder of its own, which serves one model."""
    registry.promote(random_checkpoint(seed=5).save(folder))
    settings = {"CHECKPOINT_DIR": str(folder), "REDIS_URL": redis_server.url, "ADMIN_KEY": KEY}
    with Service(**settings, MAX_MODEL_BYTES=str(MAX_BYTES)) as service:
        yield service


@pytest.fixture
def client(server: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMIN_KEY", KEY)


@pytest.mark.usefixtures("_key")
def test_a_model_goes_to_a_server_and_back(
    server: Service, client: httpx.Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is stored, and served once it is promoted; a repeated upload changes nothing; what comes back is the same."""
    checkpoint = self_test.record(random_checkpoint(seed=1))
    path = checkpoint.save(tmp_path / "here")
    for verb in ("stored as", "was there as"):
        assert main(["export", str(path), "--to", server.url]) == 0
        output = capsys.readouterr().out
        assert output.startswith(f"{checkpoint.fingerprint} {verb} {path.name}; ")
    models = client.get("/models").json()
    (stored,) = (entry for entry in models["models"] if entry["id"] == checkpoint.fingerprint)
    assert not stored["promoted"]
    assert models["serving"]["fingerprint"] != checkpoint.fingerprint
    assert main(["import", "--from", server.url, "--model", checkpoint.fingerprint, "--store", str(tmp_path)]) == 0
    assert load(tmp_path / path.name).metadata() == load(path).metadata()
    promoted = client.post(f"/models/{checkpoint.fingerprint}/promote", json={})
    assert promoted.status_code == 200, promoted.text
    eventually(lambda: client.get("/models").json()["serving"]["fingerprint"] == checkpoint.fingerprint)


@pytest.mark.usefixtures("_key")
def test_the_served_model_is_fetched(server: Service, client: httpx.Client, tmp_path: Path) -> None:
    """Without an id it is the model that answers now, with a name its promoted one; --promote serves it here."""
    for folder, options in (("served", []), ("named", ["--model", "default"])):
        store = tmp_path / folder
        assert main(["import", "--from", server.url, "--store", str(store), "--promote", *options]) == 0
        path = registry.promoted_path(store)
        assert path is not None
        assert load(path).fingerprint == client.get("/models").json()["serving"]["fingerprint"]
    assert main(["import", "--from", server.url, "--store", str(tmp_path), "--model", "unknown"]) == 1


def test_what_is_no_such_model_is_refused(client: httpx.Client, tmp_path: Path) -> None:
    """Each is an error that says why, and nothing is stored."""
    checkpoint = self_test.record(random_checkpoint(seed=2))
    path, id = checkpoint.save(tmp_path), checkpoint.fingerprint
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    changed, failing, no_format = (tmp_path / name for name in ("changed", "failing", "no-format"))
    save_file({**weights, "head.bias": weights["head.bias"] + 1}, changed, metadata)
    save_file(weights, no_format)
    failing_path = replace(checkpoint, self_test="x" * 32).save(tmp_path / "f")
    failing.write_bytes(failing_path.read_bytes())
    before = client.get("/models").json()["models"]
    for content, status, part in (
        (b"", 422, "not a complete safetensors file"),
        (b"PK\x03\x04 a pickle", 422, "not a complete safetensors file"),
        (whole[:-100], 422, "not a complete safetensors file"),
        (changed.read_bytes(), 422, "the file was modified after it was written"),
        (no_format.read_bytes(), 422, "format is"),
        (failing.read_bytes(), 422, "generated"),
        (random_checkpoint(seed=3).save(tmp_path).read_bytes(), 422, f"expected {id}, as in the address"),
        (b"x" * (MAX_BYTES + 1), 413, str(MAX_BYTES)),
    ):
        response = client.put(f"/models/{id}/file", content=content, headers=BINARY)
        error = response.json()["error"]
        assert response.status_code == status, error
        assert part in error["message"] or part in json.dumps(error), error
    text = {"Content-Type": "text/plain"}
    assert client.put(f"/models/{id}/file", content=whole, headers=text).status_code == 415
    assert client.get(f"/models/{id}/file").status_code == 404
    chunks = (b"x" * 1000 for _ in range(MAX_BYTES // 1000 + 1))
    assert client.put(f"/models/{id}/file", content=chunks, headers=BINARY).status_code == 413
    assert client.get("/models").json()["models"] == before


def test_a_name_that_is_too_long_is_replaced(client: httpx.Client, tmp_path: Path) -> None:
    """The name of the file is made from its losses, which an upload chooses."""
    checkpoint = replace(random_checkpoint(seed=4), val_loss=1e300)
    checkpoint_path = replace(checkpoint, val_loss=2.5).save(tmp_path)
    with safe_open(checkpoint_path, framework="pt") as file:
        metadata = {**file.metadata(), "run": file.metadata()["run"].replace('"val_loss": 2.5', '"val_loss": 1e300')}
    save_file(load_file(checkpoint_path), tmp_path / "long", metadata)
    response = client.put(
        f"/models/{checkpoint.fingerprint}/file", content=(tmp_path / "long").read_bytes(), headers=BINARY
    )
    assert response.status_code == 201, response.text
    assert response.json()["name"] == f"{checkpoint.fingerprint}.safetensors"


def test_a_page_is_downloaded(client: httpx.Client, tmp_path: Path) -> None:
    """It is the file that the command writes; another cell, or a model that is not there, is an error."""
    for checkpoint in (random_checkpoint(seed=6), random_checkpoint("gru", seed=7)):
        content = checkpoint.save(tmp_path).read_bytes()
        address = f"/models/{checkpoint.fingerprint}"
        assert client.put(f"{address}/file", content=content, headers=BINARY).status_code == 201
        response = client.get(f"{address}/page")
        if checkpoint.config.cell == "gru":
            assert (response.status_code, response.json()["error"]["code"]) == (409, "model_conflict")
            continue
        stem = checkpoint.file_name.removesuffix(".safetensors")
        assert response.content == to_page(checkpoint, stem)
        assert response.headers["Content-Disposition"] == f"attachment; filename={stem}-page.html"
    assert client.get(f"/models/{'0' * 16}/page").status_code == 404


def test_errors_of_the_commands(
    server: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each: no key, a wrong model, no server, options that do not go together."""
    path = str(random_checkpoint().save(tmp_path))
    monkeypatch.delenv("ADMIN_KEY", raising=False)
    for arguments, code, message in (
        (["export", path, "--to", server.url], 1, f"{server.url}: answered 401: "),
        (["import", "--from", server.url], 1, f"{server.url}: answered 401: "),
        (["export", path, "--to", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9: did not answer as a Longhand server"),
        (["export", path, "--to", server.url, "--out", "x"], 2, "out: got 'x', expected none: a server gets"),
        (["import", path, "--model", "0" * 16], 2, f"model: got '{'0' * 16}', expected none: it is for --from"),
        (["import", "--from", server.url, "--vocab", "v"], 2, "vocab: got 'v', expected none: a server's model"),
    ):
        assert main([*arguments, *(["--store", str(tmp_path)] if arguments[0] == "import" else [])]) == code
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}"), error
        assert error.count("\n") == 1
    monkeypatch.setenv("ADMIN_KEY", KEY)
    assert main(["import", "--from", server.url, "--model", "0" * 16, "--store", str(tmp_path)]) == 1
    assert "answered 404: 0000000000000000: no such model" in capsys.readouterr().err


def test_a_report_that_is_not_there_or_cannot_be_read(client: httpx.Client, folder: Path) -> None:
    """404 names the command that makes one; a folder in its place is 503; it goes with its model."""
    checkpoint = random_checkpoint(seed=8)
    path = registry.report_path(checkpoint.save(folder))
    address = f"/models/{checkpoint.fingerprint}/report"
    missing = client.get(address)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_report")
    assert "python -m model report" in missing.json()["error"]["message"]
    assert client.get("/models/0123456789abcdef/report").json()["error"]["code"] == "unknown_model"
    path.mkdir()
    assert client.get(address).status_code == 503
    path.rmdir()
    assert main(["report", str(path.with_suffix(".safetensors")), "--max-chars", "50"]) == 0
    report = client.get(address)
    assert report.status_code == 200
    assert "the corpus is not at hand" in report.text
    assert "unsafe" not in report.headers["Content-Security-Policy"].replace("style-src 'unsafe-inline'", "")
    assert client.delete(f"/models/{checkpoint.fingerprint}/file").status_code == 204
    assert not path.exists()


def test_no_model_has_the_name_that_the_openai_protocol_gives_to_the_default_one(
    client: httpx.Client, tmp_path: Path
) -> None:
    """A completion by `longhand` would be of the default model, and a text by `longhand` of the other."""
    content = self_test.record(random_checkpoint(seed=8)).save(tmp_path).read_bytes()
    for refused in (
        client.put("/models/longhand", content=content, headers=BINARY),
        client.put(f"/models/{'0' * 16}/file?model=longhand", content=content, headers=BINARY),
        client.post("/models/rollback", json={"model": "longhand"}),
        client.get("/models/longhand"),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_request")
        assert "longhand" in refused.json()["error"]["expected"]
    unknown = client.post("/generate", json={"max_chars": 1, "model": "longhand"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_model")
    assert [model["id"] for model in client.get("/v1/models").json()["data"]].count("longhand") == 1


def test_a_download_that_goes_on_is_of_one_file(client: httpx.Client, folder: Path) -> None:
    """A model may have two files, whose losses were measured on different parts: the rest of the other is no rest."""
    sampled = random_checkpoint(seed=7)
    path = sampled.save(folder)
    address = f"/models/{sampled.fingerprint}/file"
    first = client.get(address, headers={"Range": "bytes=0-99"})
    assert first.status_code == 206
    more = {"Range": "bytes=100-", "If-Range": first.headers["ETag"]}
    rest = client.get(address, headers=more)
    assert (rest.status_code, first.content + rest.content) == (206, path.read_bytes())
    whole = replace(sampled, val_loss=2.25, corpus="another name").save(folder)
    os.utime(whole, (2**31, 2**31))  # the newest is the one that is sent
    assert client.get(address, headers=more).status_code == 200
    assert client.get(address).content == whole.read_bytes()
