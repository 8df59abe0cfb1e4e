"""Secrets are in no message. Besides, conftest searches all that the servers of the whole suite print."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from redis.exceptions import RedisClusterException

from service.settings import SettingsError, read_settings
from service.store.redis_server import why_unusable
from tests.servers import OUTPUTS, ROOT, SECRET, find_secrets, output_file

UNREACHABLE = "127.0.0.1:1"
URLS = [
    f"redis://user:{SECRET}@{UNREACHABLE}/0",
    f"rediss://user:{SECRET}@{UNREACHABLE}/0",
    f"redis+cluster://user:{SECRET}@{UNREACHABLE}",
    f"rediss+cluster://user:{SECRET}@{UNREACHABLE}",
    f"redis+sentinel://user:{SECRET}@{UNREACHABLE}/mymaster",
    f"unix://user:{SECRET}@/nowhere/redis.sock",
    f"redis://{UNREACHABLE}/0?password={SECRET}",
    f"redis://user:{SECRET}/x@{UNREACHABLE}",
    f"redis://user:x/{SECRET}@{UNREACHABLE}",
    f"redis://user:{SECRET}@{UNREACHABLE}/x",
    f"redis+sentinel://user:{SECRET}@{UNREACHABLE}",
    f"redis+sentinel://user:x/{SECRET}@{UNREACHABLE}/mymaster",
    f"http://user:{SECRET}@{UNREACHABLE}",
    f"{SECRET}",
]
KEYS = {"ADMIN_KEY": SECRET, "API_KEYS": f"{SECRET},{SECRET}-2", "RATE_LIMIT": "5/minute"}


def printed(tmp_path: Path, *command: str, **environment: str) -> str:
    """What a command prints, which here ends by itself because there is no Redis."""
    variables = {**os.environ, "LONGHAND_HOME": str(tmp_path), "WORKERS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("url", URLS)
def test_no_message_has_a_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Of a Redis that cannot be reached, and of a URL that cannot be used; wherever it stands; nor a traceback."""
    for name, value in {**KEYS, "REDIS_URL": url}.items():
        monkeypatch.setenv(name, value)
    try:
        reason = why_unusable(read_settings().redis_url)
    except (SettingsError, RedisClusterException) as e:
        reason = "".join(traceback.format_exception(e))
    assert reason
    assert SECRET not in reason


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("service", URLS[0]),
        ("service doctor", URLS[4]),
        ("service.server", URLS[3]),
        ("service.jobs --bootstrap-only", URLS[5]),
        ("service.jobs", URLS[7]),
    ],
)
def test_no_command_prints_a_password(tmp_path: Path, command: str, url: str) -> None:
    """Nor a key, whatever ends it."""
    assert SECRET not in printed(tmp_path, *command.split(), REDIS_URL=url, **KEYS)


def test_no_bad_setting_is_repeated(tmp_path: Path) -> None:
    """Of secrets that cannot be used, the message has the names alone, also where gunicorn reads them."""
    bad = {"ADMIN_KEY": f" {SECRET}", "API_KEYS": f"{SECRET},x", "JOBS_REDIS_URL": f"{SECRET}://", "PORT": "x"}
    for command in ("service", "service.server"):
        output = printed(tmp_path, command, **bad)
        assert all(name in output for name in bad)
        assert SECRET not in output


def test_the_search_of_the_outputs_finds_a_secret() -> None:
    """The control of what conftest does at the end of the run."""
    assert find_secrets() == []
    with output_file() as output:
        output.write(f"connecting to redis://:{SECRET}@host\n".encode())
    assert find_secrets() == [Path(output.name).name]
    (OUTPUTS / Path(output.name).name).unlink()
