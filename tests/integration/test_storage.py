"""A disk that is full or read-only: uploads say so, and what only reads needs no write."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from service.operations.metrics import Metrics
from service.routes import converters, corpora, error_responses
from service.store.corpora import Corpora

TEXT = "one text, two lines\n" * 50


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    """The routes of corpora, with one corpus that was copied into the folder by hand."""
    app = Flask(__name__)
    app.testing = False
    error_responses.register(app, Metrics().count_refused_request, lambda _: None)
    converters.register(app)
    app.register_blueprint(corpora.blueprint(Corpora(tmp_path, 10**6), 10**6))
    (tmp_path / "mine").write_text(TEXT)
    with app.test_client() as client:
        yield client


@pytest.fixture(params=[(errno.ENOSPC, 507, "storage_full"), (errno.EDQUOT, 507, "storage_full"),
                        (errno.EROFS, 503, "storage_failed"), (errno.EACCES, 503, "storage_failed")],
                ids=["no space", "quota", "read-only", "no right"])  # fmt: skip
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int, str]:
    """Every write of a file fails; returns the reason, and the status and code of the answer."""
    number, status, code = request.param

    def fail(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fail)
    return os.strerror(number), status, code


def test_an_upload_says_why(client: FlaskClient, tmp_path: Path, broken: tuple[str, int, str]) -> None:
    """507 for a full disk, 503 for one that cannot be written; the reason is in the message, nothing is left."""
    reason, status, code = broken
    for name in ("new", "mine"):
        response = client.put(f"/corpora/{name}", data=TEXT.upper())
        assert response.status_code == status
        error = response.get_json()["error"]
        assert error["code"] == code
        assert reason in error["message"]
        assert name in error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == TEXT


def test_reading_needs_no_write(client: FlaskClient, tmp_path: Path, broken: tuple[str, int, str]) -> None:
    """The list and a single corpus are complete; nothing was stored beside the text."""
    (listed,) = [c for c in client.get("/corpora").get_json()["corpora"] if c["name"] == "mine"]
    assert listed["characters"] == len(TEXT)
    assert client.get("/corpora/mine").get_json() == listed
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_corpus_that_cannot_be_read(client: FlaskClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without the right to read it: the list has its error, itself it answers 503; so does a failing delete."""
    real_open, real_unlink = open, Path.unlink

    def refuse(path: object, *args: object, **options: object) -> object:
        if str(path) == str(tmp_path / "mine"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real_open(path, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("builtins.open", refuse)
    listed = {c["name"]: c for c in client.get("/corpora").get_json()["corpora"]}
    assert listed["mine"]["error"] == "corpus mine: cannot be read (Permission denied)"
    assert "error" not in listed["shakespeare"]
    response = client.get("/corpora/mine")
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "storage_failed")

    def keep(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", keep)
    response = client.delete("/corpora/mine")
    monkeypatch.setattr(Path, "unlink", real_unlink)
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "storage_failed")
    assert "Read-only file system" in response.get_json()["error"]["message"]


def test_statistics_of_an_earlier_normalization_are_not_used(client: FlaskClient, tmp_path: Path) -> None:
    """What is stored beside a text belongs to a way of reading it: another one reads the text again."""
    assert client.get("/corpora/mine").status_code == 200
    info = tmp_path / ".mine.json"
    info.write_text(info.read_text().replace('"nfc"', '"newlines"').replace(str(len(TEXT)), "7"))
    assert client.get("/corpora/mine").get_json()["characters"] == len(TEXT)
