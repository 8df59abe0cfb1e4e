"""The URLs that REDIS_URL and JOBS_REDIS_URL may hold: checked without a connection, and shown without a password."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote, urlsplit

import redis

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel")
_SENTINEL_PORT = 26379


def check_url(url: str) -> None:
    """Check that a client can be made from a URL; no connection is opened.

    Raises:
        ValueError: The message says what was expected.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(f"expected a URL like redis://localhost:6379; it may begin with {schemes}")
    try:
        if scheme == "redis+sentinel":
            sentinel_parts(url)
            return
        client = redis.Redis.from_url(f"{scheme.removesuffix('+cluster')}://{rest}")
        connection: Any = client.connection_pool.make_connection()
    except (ValueError, TypeError):  # whose messages may repeat a part of the URL, such as the password
        raise ValueError(
            "expected a URL like redis://localhost:6379/0 or redis+sentinel://localhost:26379/mymaster; special "
            "characters in its user and password are written as %XX; a port and a database are numbers"
        ) from None
    if scheme == "unix" and not connection.path:
        raise ValueError("expected a URL like unix:///run/redis.sock: it has no path")


def sentinel_parts(url: str) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """Split a sentinel URL into the sentinels' addresses, the name of the service, and the client's options.

    A user, a password and a service that contain special characters are percent-encoded.

    Raises:
        ValueError: A part is missing or cannot be read; the message contains no password.
    """
    # Not by urlsplit: a list of hosts is no URL's host, and newer versions refuse one with an IPv6 address in it.
    parts = re.fullmatch(
        r"redis\+sentinel://(?:(?P<credentials>[^/?#]*)@)?(?P<hosts>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)",
        url,
        re.DOTALL,
    )
    if not parts:
        raise ValueError("expected a URL like redis+sentinel://localhost:26379/mymaster")
    sentinels = [_host_and_port(host) for host in parts["hosts"].split(",")]
    service, _, db = parts["path"].strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing, as in redis+sentinel://localhost:26379/mymaster")
    if not re.fullmatch(r"\d*", db):
        raise ValueError(f"expected the number of the database after the service, got {db!r}")
    if parts["rest"]:
        raise ValueError("expected no options after '?' or '#' in a URL of sentinels")
    username, separator, password = (parts["credentials"] or "").partition(":")
    options = {
        "db": int(db or 0),
        "username": unquote(username) or None,
        "password": unquote(password) if separator else None,
    }
    return sentinels, unquote(service), options


def _host_and_port(address: str) -> tuple[str, int]:
    """Split host:port; an IPv6 address is in brackets."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname:
        raise ValueError("expected host:port of each sentinel, separated by commas")
    return parts.hostname, parts.port or _SENTINEL_PORT


def redacted(url: str) -> str:
    """Return a URL as it may be printed: not at all where a secret might be in it, or be all of it."""
    scheme, separator, _ = url.partition("://")
    is_plain = bool(separator) and scheme in SCHEMES and "@" not in url and "?" not in url
    return repr(url) if is_plain else "..."
