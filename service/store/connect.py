"""A Redis client from a URL: one server, a cluster, or the master that sentinels name."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.redis_url import sentinel_parts


def connect(url: str) -> Any:
    """Return a client that fails fast: after two short retries it raises the error.

    A cluster is contacted at once; the other clients connect at their first command.

    Args:
        url: redis://, rediss:// (TLS) and unix:// as redis-py reads them, with user, password and options.
            redis+cluster:// and rediss+cluster:// name one node of a cluster.
            redis+sentinel://host:port,host:port/SERVICE[/db] names the sentinels of a service.
    """
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return RedisCluster.from_url(f"{scheme.removesuffix('+cluster')}://{rest}", **_options())
    if scheme == "redis+sentinel":
        return _connect_by_sentinel(url)
    return redis.Redis.from_url(url, health_check_interval=30, **_options())


def _connect_by_sentinel(url: str) -> Any:
    sentinels, service, options = sentinel_parts(url)
    sentinel: Any = Sentinel(sentinels, socket_timeout=1.0)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service, **options, **_options())


def _options() -> dict[str, Any]:
    return {
        "socket_timeout": 2.0,
        "socket_connect_timeout": 1.0,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 2),
    }
