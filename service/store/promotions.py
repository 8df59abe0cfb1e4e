"""Word of a promotion, from whoever made it to every process that serves: a nudge to look at promoted.json now.

Only a nudge: who misses it sees the file a moment later all the same, so losing Redis loses nothing.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import redis

_CHANNEL = "lh:promoted"


class Promotions(Protocol):
    def announce(self) -> None:
        """Say that something was promoted. Never raises: the file says it too."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something was promoted, or when the time is up. One thread calls it."""
        ...


class MemoryPromotions:
    """Within this process."""

    def __init__(self) -> None:
        self._announced = threading.Event()

    def announce(self) -> None:
        self._announced.set()

    def wait(self, timeout_s: float) -> None:
        self._announced.wait(timeout_s)
        self._announced.clear()


class RedisPromotions:
    """Over pub/sub, to every process on the same Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._listening: Any = None

    def announce(self) -> None:
        try:
            self._client.publish(_CHANNEL, b"")
        except redis.RedisError:
            return

    def wait(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        try:
            if self._listening is None:
                self._listening = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                self._listening.subscribe(_CHANNEL)
            while (left := until - time.monotonic()) > 0:
                if self._listening.get_message(timeout=left) is not None:
                    return
        except redis.RedisError:
            self._listening = None
            time.sleep(max(0.0, until - time.monotonic()))
