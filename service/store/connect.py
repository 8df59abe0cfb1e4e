"""A Redis client from a URL: one server, a cluster, or what a sentinel says is the master."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel")


def connect(url: str) -> Any:
    """A client that fails fast: two short retries, then the error. A cluster's nodes are asked at once, others later.

    redis://, rediss:// (TLS) and unix:// are redis-py's own, user, password and options included. redis+cluster:// and
    rediss+cluster:// name one node of a cluster. redis+sentinel://host:port,host:port/SERVICE[/db] asks the sentinels.
    """
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return RedisCluster.from_url(f"{scheme.removesuffix('+cluster')}://{rest}", **_options())
    if scheme == "redis+sentinel":
        return _by_sentinel(url)
    return redis.Redis.from_url(url, health_check_interval=30, **_options())


def _by_sentinel(url: str) -> Any:
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2].split(",")
    sentinels = [(host.partition(":")[0], int(host.partition(":")[2] or 26379)) for host in hosts]
    service, _, db = parts.path.strip("/").partition("/")
    sentinel: Any = Sentinel(sentinels, socket_timeout=1.0)  # type: ignore[no-untyped-call]
    login = {"username": parts.username or None, "password": parts.password}
    return sentinel.master_for(service, db=int(db or 0), **login, **_options())


def _options() -> dict[str, Any]:
    return {
        "socket_timeout": 2.0,
        "socket_connect_timeout": 1.0,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 2),
    }
