"""Choose the stores: in Redis if REDIS_URL is set, else in the memory of this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.settings import Settings
from service.store.connect import connect
from service.store.memory import MemorySessions
from service.store.prefixes import MemoryPrefixes, PrefixStore, RedisPrefixes
from service.store.promotions import MemoryPromotions, Promotions, RedisPromotions
from service.store.redis import RedisSessions
from service.store.sessions import SessionStore


@dataclass(frozen=True, slots=True)
class Stores:
    """What the workers of a service share."""

    sessions: SessionStore
    prefixes: PrefixStore
    promotions: Promotions
    redis: Any  # the client of all of them, as `connect` makes it; None without a Redis


def connect_stores(settings: Settings) -> Stores:
    """Return the stores; nothing is sent yet."""
    if not settings.redis_url:
        sessions = MemorySessions(settings.session_ttl_s, settings.turn_ttl_s)
        return Stores(sessions, MemoryPrefixes(), MemoryPromotions(), None)
    client = connect(settings.redis_url)
    return Stores(
        RedisSessions(client, settings.session_ttl_s, settings.turn_ttl_s),
        RedisPrefixes(client, settings.prefix_ttl_s),
        RedisPromotions(client),
        client,
    )
