"""A Redis client from a URL: one server, a cluster, or the master that sentinels name.

A server that is down refuses connections, which takes no time. One that is mute (stopped, or behind a lost network)
costs each command its timeout. So a client has a circuit breaker: after a failure its commands fail at once for a
moment, then one of them tries, and the others fail until it has an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.redis_url import sentinel_parts

T = TypeVar("T")
TIMEOUT_S = 2.0
"""How long a command waits for an answer. It is not sent again: what takes longer would take as long again."""
PAUSE_S = 1.0
"""How long commands fail at once after one got no answer."""
_TRIAL_S = 5.0  # a command that tries counts as lost after this time


class CircuitBreaker:
    """Lets commands fail at once while a server does not answer. Any number of threads share one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin closed: every command is sent.

        Args:
            clock: The time in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until = 0.0  # 0: closed

    def call(self, command: Callable[[], T]) -> T:
        """Run a command.

        Raises:
            redis.ConnectionError: It got no answer, or is not sent because an earlier one got none a moment ago.
            redis.RedisError: What the command raises.
        """
        with self._lock:
            if self._open_until:
                now = self._clock()
                if now < self._open_until:
                    raise redis.ConnectionError("Redis did not answer a moment ago")
                self._open_until = now + _TRIAL_S
        try:
            result = command()
        except (redis.ConnectionError, redis.TimeoutError):
            with self._lock:
                self._open_until = self._clock() + PAUSE_S
            raise
        except redis.RedisError:  # an answer
            self._close()
            raise
        self._close()
        return result

    def _close(self) -> None:
        if self._open_until:
            with self._lock:
                self._open_until = 0.0


class _Guarded:
    """Sends the commands of a client through a circuit breaker. Pipelines and subscriptions are not guarded."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.breaker = CircuitBreaker()
        super().__init__(*args, **options)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        execute: Any = super().execute_command  # type: ignore[misc]
        return self.breaker.call(lambda: execute(*args, **options))


class _Redis(_Guarded, redis.Redis):
    """One server."""


class _RedisCluster(_Guarded, RedisCluster):
    """A cluster."""


def connect(url: str, *, breaker: bool = True) -> Any:
    """Return a client that fails fast: after two short retries of a broken connection it raises the error.

    A cluster is contacted at once; the other clients connect at their first command.

    Args:
        url: redis://, rediss:// (TLS) and unix:// as redis-py reads them, with user, password and options.
            redis+cluster:// and rediss+cluster:// name one node of a cluster.
            redis+sentinel://host:port,host:port/SERVICE[/db] names the sentinels of a service.
        breaker: Whether commands fail at once while the server does not answer. False for a process that has nothing
            else to do than to wait for Redis.
    """
    one, cluster = (_Redis, _RedisCluster) if breaker else (redis.Redis, RedisCluster)
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return cluster.from_url(f"{scheme.removesuffix('+cluster')}://{rest}", **_options())
    if scheme == "redis+sentinel":
        return _connect_by_sentinel(url, one)
    return one.from_url(url, health_check_interval=30, **_options())


def _connect_by_sentinel(url: str, kind: type[redis.Redis]) -> Any:
    sentinels, service, options = sentinel_parts(url)
    sentinel: Any = Sentinel(sentinels, socket_timeout=1.0)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service, redis_class=kind, **options, **_options())


def _options() -> dict[str, Any]:
    return {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": 1.0,
        "retry": Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 2, (redis.ConnectionError,)),
    }
