"""The keys of API_KEYS_FILE: what each may do, and what happens when the file changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from service.access.api_keys import ApiKey, ApiKeys
from service.access.auth import Authenticator, RequestSource
from service.settings import SettingsError

FIXED, SHOP, LOGS = "a-fixed-key-00001", "the-key-of-a-shop", "the-key-of-some-logs"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def entry(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest(key), **more}


def write(path: Path, *entries: Any) -> Path:
    """Replace the file, as an editor or `mv` does."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": list(entries)}))
    return new.replace(path)


def test_a_key_has_its_models_and_its_rate(tmp_path: Path) -> None:
    """Those of API_KEYS open every model; no digest opens anything."""
    path = write(tmp_path / "keys", entry("shop", SHOP, models=["names"], rate="5/minute"), entry("logs", LOGS))
    keys = ApiKeys([FIXED], path)
    assert keys.find(SHOP.encode()) == ApiKey("shop", frozenset(["names"]), "5/minute")
    assert keys.find(LOGS.encode()) == ApiKey("logs", None, "")
    assert keys.find(FIXED.encode()) == ApiKey("")
    for wrong in (digest(SHOP), SHOP[:-1], "", "é"):
        assert keys.find(wrong.encode()) is None


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that cannot be used leaves the keys as they are, and its fault is logged once; the next one counts."""
    path = write(tmp_path / "keys", entry("shop", SHOP))
    keys = ApiKeys([], path)
    write(path, entry("shop", SHOP), entry("logs", LOGS))
    assert keys.find(LOGS.encode()) is not None
    for content in (b"{", b"", b'{"keys": [{"name": "x"}]}'):
        path.write_bytes(content)
        caplog.clear()
        for _ in range(3):
            assert keys.find(SHOP.encode()) is not None
        assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.unlink()
    assert keys.find(SHOP.encode()) is not None
    write(path, entry("logs", LOGS))
    assert keys.find(SHOP.encode()) is None
    write(path)
    assert keys.find(LOGS.encode()) is None
    assert keys.are_required


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "the file: expected a JSON object"),
        ('{"keys": [1]}', "keys.0: expected a JSON object"),
        ('{"keys": [{"sha256": "' + "0" * 64 + '"}]}', "keys.0.name: Field required"),
        ({"keys": [entry("a b", SHOP)]}, "keys.0.name: "),
        ({"keys": [{"name": "a", "sha256": SHOP}]}, "keys.0.sha256: "),
        ({"keys": [{"name": "a", "sha256": digest(SHOP).upper()}]}, "keys.0.sha256: "),
        ({"keys": [entry("a", SHOP, models=[])]}, "keys.0.models: "),
        ({"keys": [entry("a", SHOP, models="names")]}, "keys.0.models: "),
        ({"keys": [entry("a", SHOP, models=["../x"])]}, "keys.0.models.0: "),
        ({"keys": [entry("a", SHOP, models=["0123456789abcdef"])]}, "keys.0.models.0: "),
        ({"keys": [entry("a", SHOP, rate="5 a minute")]}, "keys.0.rate: "),
        ({"keys": [{**entry("a", SHOP), "key": SHOP}]}, "keys.0.key: Extra inputs"),
        ({"keys": [entry("a", SHOP), entry("a", LOGS)]}, "keys.1.name: is in the file twice"),
        ({"keys": [entry("a", SHOP), entry("b", SHOP)]}, "keys.1.sha256: is in the file twice"),
        ("[" * 100_000, "recursion"),
        ("{}x", "Extra data"),
        (None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: Any, problem: str) -> None:
    """The error names the setting, the entry and the field, and shows neither keys nor digests."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SettingsError) as caught:
        ApiKeys([], path)
    message = str(caught.value)
    assert message.startswith(f"API_KEYS_FILE={str(path)!r}: ")
    assert problem in message
    assert SHOP not in message
    assert digest(SHOP) not in message


def test_a_file_closes_generation(tmp_path: Path) -> None:
    """Also where it names no key yet; the operator's key opens it."""
    authenticator = Authenticator("the-operators-key", ApiKeys([], write(tmp_path / "keys")), loopback_only=True)
    source = RequestSource("Bearer the-operators-key", "localhost", None, "127.0.0.1", False)
    assert authenticator.check_api(source) is None
    assert authenticator.key_id(source)


def test_another_file_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    """As `cp --preserve` and `mv` make one."""
    path = write(tmp_path / "keys", entry("a", SHOP))
    keys, stat = ApiKeys([], path), path.stat()
    other = write(tmp_path / "other", entry("a", LOGS))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert keys.find(LOGS.encode()) is not None
