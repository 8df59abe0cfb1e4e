"""A Redis client from a URL: one server, a cluster, or the master that sentinels name.

A server that is down refuses connections, which takes no time. One that is mute (stopped, or behind a lost network)
costs each command its timeout. So a client has a circuit breaker: after a failure its commands fail at once for a
moment, then one of them tries, and the others fail until it has an answer.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from service.redis_url import sentinel_parts

T = TypeVar("T")
TIMEOUT_S = 2.0
"""How long a command waits for an answer. It is not sent again: what takes longer would take as long again."""
PAUSE_S = 1.0
"""How long commands fail at once after one got no answer."""
_TRIAL_S = 5.0  # a command that tries counts as lost after this time
_DEMOTED = ("READONLY", "UNBLOCKED")


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


class _Cluster(RedisCluster):
    """A cluster that does not answer is a connection error; redis-py raises an error outside of its own tree."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except RedisClusterException as error:
            raise redis.ConnectionError(f"the cluster cannot be used ({error})") from error


class _GuardedCluster(_Guarded, _Cluster):
    """A cluster."""


class _FailoverRetry(Retry):
    """A retry also where the server answers that it has become a replica.

    After a failover, connections to the old primary stay open, and each write on them is answered with READONLY (by
    Redis 6.2 somewhere in the error of a script), a blocked read with UNBLOCKED. As a connection error, it closes the
    connection, and the next one asks the name server or the sentinels again.
    """

    def call_with_retry(self, do: Callable[[], Any], *args: Any, **options: Any) -> Any:
        def checked() -> Any:
            try:
                return do()
            except redis.ResponseError as error:
                if isinstance(error, redis.ReadOnlyError) or any(word in str(error) for word in _DEMOTED):
                    raise redis.ConnectionError(f"the server has become a replica ({error})") from error
                raise

        return super().call_with_retry(checked, *args, **options)


def connect(url: str, *, breaker: bool = True) -> Any:
    """Return a client that fails fast: after two short retries of a broken connection it raises the error.

    A cluster is contacted at once; the other clients connect at their first command.

    Args:
        url: redis://, rediss:// (TLS) and unix:// as redis-py reads them, with user, password and options.
            redis+cluster:// and rediss+cluster:// name one node of a cluster.
            redis+sentinel://host:port,host:port/SERVICE[/db] names the sentinels of a service.
        breaker: Whether commands fail at once while the server does not answer. False for a process that has nothing
            else to do than to wait for Redis.

    Raises:
        redis.ConnectionError: The cluster does not answer.
    """
    one, cluster = (_Redis, _GuardedCluster) if breaker else (redis.Redis, _Cluster)
    scheme, _, rest = url.partition("://")
    if scheme.endswith("+cluster"):
        return _connect_to_cluster(f"{scheme.removesuffix('+cluster')}://{rest}", cluster)
    if scheme == "redis+sentinel":
        return _connect_by_sentinel(url, one)
    return one.from_url(url, health_check_interval=30, **_options())


def close(client: Any) -> None:
    """Close the connections of a client that `connect` made, also those to sentinels."""
    client.close()
    if isinstance(client, RedisCluster):  # its close() leaves the nodes' pools open
        client.disconnect_connection_pools()  # type: ignore[no-untyped-call]
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    if manager is not None:
        client.connection_pool.disconnect()
        manager.close()


def _connect_to_cluster(url: str, kind: type[RedisCluster]) -> Any:
    nodes: list[ClusterNode] = []  # from_url adds the node of the URL
    try:
        return kind.from_url(url, startup_nodes=nodes, **_options())
    except RedisClusterException as error:
        raise redis.ConnectionError(str(error)) from error
    finally:
        # The client forgets this node's first connection once the cluster has named its nodes.
        for node in nodes:
            if node.redis_connection is not None:
                with contextlib.suppress(redis.RedisError, OSError):
                    node.redis_connection.connection_pool.disconnect()


def _connect_by_sentinel(url: str, kind: type[redis.Redis]) -> Any:
    sentinels, service, options = sentinel_parts(url)
    # With redis-py's own retries, a sentinel that is down would cost seconds before the next one is tried.
    sentinel: Any = Sentinel(sentinels, sentinel_kwargs={**_options(), "socket_timeout": 1.0})  # type: ignore[no-untyped-call]
    return sentinel.master_for(service, redis_class=kind, **options, **_options())


def _options() -> dict[str, Any]:
    return {
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": 1.0,
        "retry": _FailoverRetry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 2, (redis.ConnectionError,)),
    }
