"""Notification of a promotion, from the process that promoted to every process that serves: read promoted.json now.

A process that misses the notification reads the file a moment later anyway, so an unreachable Redis loses nothing.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

import redis

_CHANNEL = "lh:promoted"


class Promotions(Protocol):
    """Sends and awaits notifications."""

    def announce(self) -> None:
        """Notify every process of a promotion. Never raises."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return at the next notification, or when the time is up. Only one thread calls it."""
        ...


class MemoryPromotions:
    """Notifications within one process."""

    def __init__(self) -> None:
        """Begin without a notification."""
        self._announced = threading.Event()

    def announce(self) -> None:
        """Notify this process of a promotion."""
        self._announced.set()

    def wait(self, timeout_s: float) -> None:
        """Return at the next notification, or when the time is up."""
        self._announced.wait(timeout_s)
        self._announced.clear()


class RedisPromotions:
    """Notifications over pub/sub, to every process that uses the same Redis."""

    def __init__(self, client: redis.Redis) -> None:
        """Use this client; it subscribes at the first `wait`."""
        self._client = client
        self._subscription: Any = None

    def announce(self) -> None:
        """Notify every process of a promotion, if Redis answers."""
        try:
            self._client.publish(_CHANNEL, b"")
        except redis.RedisError:
            return

    def wait(self, timeout_s: float) -> None:
        """Return at the next notification, or when the time is up; subscribe again after a Redis error."""
        deadline = time.monotonic() + timeout_s
        try:
            if self._subscription is None:
                self._subscription = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
                self._subscription.subscribe(_CHANNEL)
            while (remaining := deadline - time.monotonic()) > 0:
                if self._subscription.get_message(timeout=remaining) is not None:
                    return
        except redis.RedisError:
            self._subscription = None
            time.sleep(max(0.0, deadline - time.monotonic()))
