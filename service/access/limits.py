"""Rate limits per client: a sliding window that all processes share through Redis, if one is configured."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage
from limits.strategies import SlidingWindowCounterRateLimiter

from service.errors import RateLimited
from service.settings import SettingsError
from service.store.redis_server import is_temporary


class RateLimiter:
    """Counts the requests of each client against one rate."""

    def __init__(self, rate: str, client: Any = None) -> None:
        """Set the rate.

        Args:
            rate: Such as "60/minute"; empty for no limit.
            client: The Redis, as store.connect makes it, in which the counts are shared; None counts in this process.
        """
        self._rate: RateLimitItem | None = parse(rate) if rate else None
        storage = MemoryStorage() if client is None else _ClientStorage(client)
        self._window = SlidingWindowCounterRateLimiter(storage)

    def require_working(self, setting: str) -> None:
        """Check that requests can be counted. A Redis that cannot be reached now is not an error here.

        Args:
            setting: The name of the rate's setting.

        Raises:
            SettingsError: The Redis refuses what the limiter sends, so that no request would ever be limited.
        """
        try:
            if self._rate is not None:
                self._window.hit(self._rate, "start", cost=0)
        except StorageError as error:
            if not is_temporary(error.__cause__):
                raise SettingsError(f"{setting}: the Redis of REDIS_URL cannot count requests ({error})") from error

    def hit(self, client: str, cost: int = 1, rate: str = "") -> None:
        """Count a request. While Redis is unreachable no request is refused: the engine's queue is bounded anyway.

        Args:
            client: Who sent it.
            cost: What it counts; more than the whole rate is counted as the whole rate.
            rate: The client's own, such as "60/minute"; empty: that of all clients.

        Raises:
            RateLimited: The client's rate is used up.
        """
        limit = _parsed(rate) if rate else self._rate
        if limit is None:
            return
        try:
            if not self._window.hit(limit, client, cost=min(cost, limit.amount)):
                raise self._too_many(limit, client)
        except StorageError:
            return

    def check(self, client: str) -> None:
        """Count nothing.

        Raises:
            RateLimited: The client's rate is used up.
        """
        if self._rate is not None and not self._window.test(self._rate, client):
            raise self._too_many(self._rate, client)

    def _too_many(self, rate: RateLimitItem, client: str) -> RateLimited:
        error = RateLimited(f"too many requests: at most {rate} are allowed")
        error.retry_after_s = max(1, round(self._window.get_window_stats(rate, client).reset_time - time.time()))
        return error


@lru_cache(maxsize=1024)
def _parsed(rate: str) -> RateLimitItem:
    return parse(rate)


class _ClientStorage(RedisStorage):
    """The library's storage on the client that the stores use, too: of any kind, and with the same circuit breaker.

    The library would make a client of its own from a URL, which knows fewer kinds of URL and waits longer.
    """

    STORAGE_SCHEME = None  # type: ignore[assignment]

    def __init__(self, client: Any) -> None:
        Storage.__init__(self, wrap_exceptions=True)
        self.key_prefix, self.target_server = self.PREFIX, "redis"
        self.dependency = self.dependencies["redis"].module
        self.storage = client
        self.initialize_storage("")
