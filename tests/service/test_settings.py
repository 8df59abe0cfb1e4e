"""Settings from the environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.settings import SettingsError, describe, read_settings
from tests.servers import ROOT


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("PORT", "http", "PORT='http': "),
        ("PORT", "70000", "less than or equal to 65535"),
        ("SLOTS", "0", "greater than or equal to 1"),
        ("DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("WORKERS", "2", "more than one needs REDIS_URL"),
    ],
)
def test_a_bad_value_is_refused(monkeypatch: pytest.MonkeyPatch, key: str, value: str, says: str) -> None:
    """The error names the variable, its value and what was expected."""
    monkeypatch.setenv(key, value)
    with pytest.raises(SettingsError) as e:
        read_settings()
    assert key in str(e.value)
    assert value in str(e.value)
    assert says in str(e.value)


@pytest.mark.parametrize("name", ["REDIS_URL", "JOBS_REDIS_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "localhost",
        "http://localhost:6379",
        "redis:localhost",
        "redis://localhost:port",
        "redis://localhost:99999",
        "redis://localhost?socket_timeout=soon",
        "redis://localhost?no_such_option=1",
        "redis://[::1",
        "unix://",
        "redis+sentinel://localhost:26379",
        "redis+sentinel://localhost:first/mymaster",
        "redis+sentinel://localhost/mymaster/first",
    ],
)
def test_a_redis_url_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, url: str) -> None:
    """Before any connection: the error names the variable and what a URL looks like, on one line."""
    monkeypatch.setenv(name, url)
    with pytest.raises(SettingsError) as e:
        read_settings()
    assert str(e.value).startswith(f"{name}=")
    assert "expected a URL like " in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://user:password@[::1]:6379/2?socket_timeout=3",
        "rediss://localhost:6380",
        "unix:///run/redis.sock?db=1",
        "redis+cluster://one:7000",
        "redis+sentinel://one:26379,two/mymaster/3",
    ],
)
def test_a_redis_url_that_can_be_used_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Whether a server answers there is not a matter of the settings."""
    monkeypatch.setenv("REDIS_URL", url)
    assert read_settings().redis_url == url


def test_a_password_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is any part of a URL that may hold one."""
    for url in (
        "redis://:of-mine@localhost:port",
        "localhost?password=of-mine",
        "redis://localhost:x?password=of-mine",
    ):
        monkeypatch.setenv("REDIS_URL", url)
        with pytest.raises(SettingsError) as e:
            read_settings()
        assert "of-mine" not in str(e.value)


def test_an_ipv6_address_may_be_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    """HOST is an address, however it is written."""
    monkeypatch.setenv("HOST", "[::1]")
    assert read_settings().host == "::1"


def test_a_launcher_that_embeds_redis_may_have_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """They share its Redis; gunicorn alone needs REDIS_URL."""
    monkeypatch.setenv("WORKERS", "2")
    assert read_settings(embeds_redis=True).workers == 2


def test_the_job_queue_is_never_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """RQ cannot use a cluster: the queue is in JOBS_REDIS_URL, else in a single REDIS_URL, else there is none."""
    monkeypatch.setenv("REDIS_URL", "redis://one")
    assert read_settings().queue_url == "redis://one"
    monkeypatch.setenv("REDIS_URL", "redis+cluster://many")
    assert read_settings().queue_url == ""
    with pytest.raises(SettingsError, match="JOBS_REDIS_URL"):
        read_settings().require_queue()
    monkeypatch.setenv("JOBS_REDIS_URL", "redis://one")
    assert read_settings().require_queue() == "redis://one"
    monkeypatch.setenv("JOBS_REDIS_URL", "redis+cluster://:of-mine@many")
    with pytest.raises(SettingsError, match="cannot be in a cluster") as e:
        read_settings()
    assert "of-mine" not in str(e.value)


def test_a_bad_value_stops_the_start() -> None:
    """python -m service with a bad value prints one line, exits with 1 and starts nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "service"], cwd=ROOT, env={**os.environ, "PORT": "x"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error   PORT='x': ")
    assert done.stderr.count("\n") == 1


def test_an_empty_value_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """PORT= in a compose file means the default; every setting has a description."""
    monkeypatch.setenv("PORT", "")
    assert read_settings().port == 8000
    assert all(name.upper() in describe() for name in type(read_settings()).model_fields)
