"""Promotions among processes: of two that promote at once one wins, and every process that serves is notified.

The file promoted.json counts its versions. Who wants to write the next one claims its number first; the lock of the
folder is not enough where several machines share it. A process that misses a notification reads the file a moment later
anyway, and without Redis the lock and the version in the file decide, so an unreachable Redis loses nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import redis
from redis.exceptions import RedisClusterException

from model.checkpoints.names import DEFAULT
from model.errors import PromotionConflict

T = TypeVar("T")
_CHANNEL = "lh:promoted"
_CLAIM_S = 60
"""A process that died between its claim and its write blocks that version no longer than this."""


class Promotions(Protocol):
    """Claims versions of promoted.json, and sends and awaits notifications."""

    def claim(self, version: int, name: str = DEFAULT) -> bool:
        """Claim the change of a model from this version to the next: of all processes one gets True. Never raises."""
        ...

    def release(self, version: int, name: str = DEFAULT) -> None:
        """Give a claim back, if nothing was changed. Never raises."""
        ...

    def announce(self) -> None:
        """Notify every process of a promotion. Never raises."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return at the next notification, or when the time is up. Only one thread calls it."""
        ...


def change_promotion(promotions: Promotions, version: int, change: Callable[[int], T], name: str = DEFAULT) -> T:
    """Change promoted.json with `change(version)`, if no other process does so at the same time, and announce it.

    Args:
        promotions: Where the change is claimed and announced.
        version: What `registry.promotion_version` returned when the caller decided.
        change: Such as `registry.promote`.
        name: The model's name.

    Raises:
        PromotionConflict: Another process has changed it, or is about to.
    """
    if not promotions.claim(version, name):
        raise PromotionConflict("another checkpoint is promoted at the same time", field="promoted.json")
    try:
        changed = change(version)
    except BaseException:
        promotions.release(version, name)
        raise
    promotions.announce()
    return changed


def _claim_key(version: int, name: str) -> str:
    return f"lh:promotion:{version}" if name == DEFAULT else f"lh:promotion:{name}:{version}"


class MemoryPromotions:
    """Notifications within one process."""

    def __init__(self) -> None:
        """Begin without a notification."""
        self._announced = threading.Event()

    def claim(self, version: int, name: str = DEFAULT) -> bool:
        """Return True: within one machine the lock of the folder and the version in the file decide."""
        return True

    def release(self, version: int, name: str = DEFAULT) -> None:
        """There is nothing to give back."""

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

    def claim(self, version: int, name: str = DEFAULT) -> bool:
        """Claim a version in Redis; True if Redis does not answer."""
        try:
            return bool(self._client.set(_claim_key(version, name), b"", nx=True, ex=_CLAIM_S))
        except redis.RedisError:
            return True

    def release(self, version: int, name: str = DEFAULT) -> None:
        """Delete the claim, which would also expire."""
        with contextlib.suppress(redis.RedisError):
            self._client.delete(_claim_key(version, name))

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
        except (redis.RedisError, RedisClusterException):  # the second is not one of the first
            self._subscription = None
            time.sleep(max(0.0, deadline - time.monotonic()))
