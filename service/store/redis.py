"""Sessions in Redis: two keys a session at most, one round trip an operation, checked inside Redis by small scripts.

    lh:{digest}        the record, as Session.to_bytes; expires SESSION_TTL_S after its last use
    lh:{digest}:turn   the token of the request that is writing it; expires with its lease

Both share a hash tag, so a cluster keeps them together. When Redis does not answer, every call raises StoreAway, and
for a second after that without asking again: threads must not pile up behind timeouts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any, cast

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from service.errors import SessionConflict, StoreAway, UnknownSession
from service.store.sessions import Session, key_of

_PAUSE_S = 1.0

_BEGIN = """
local record = redis.call('GET', KEYS[1])
if ARGV[3] == '0' and not record then return {'unknown'} end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {'busy'} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {'ok', record}
"""
_RENEW = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""
_COMMIT = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('DEL', KEYS[2])
return 1
"""
_ABANDON = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 1
"""


def connect(url: str) -> redis.Redis:
    """A client that fails fast: two short retries, then the error. No connection is made yet."""
    return redis.Redis.from_url(
        url,
        socket_timeout=2.0,
        socket_connect_timeout=1.0,
        health_check_interval=30,
        retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=0.2), 2),
    )


class RedisSessions:
    """Implements `SessionStore`."""

    def __init__(self, client: redis.Redis, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._away_until = 0.0
        self._begin = client.register_script(_BEGIN)
        self._renew = client.register_script(_RENEW)
        self._commit = client.register_script(_COMMIT)
        self._abandon = client.register_script(_ABANDON)

    def load(self, session_id: str) -> Session | None:
        data = self._ask(lambda: self._client.getex(_keys(session_id)[0], ex=self._ttl_s))
        return None if data is None else Session.from_bytes(data)

    def begin(self, session_id: str, *, is_new: bool, lease_s: float) -> tuple[str, Session | None]:
        token = secrets.token_hex(8)
        args: list[str | int] = [token, _ms(lease_s), int(is_new)]
        reply = self._ask(lambda: self._begin(keys=_keys(session_id), args=args))
        if reply[0] == b"unknown":
            raise UnknownSession("no such session: it never was, was deleted, or has expired")
        if reply[0] == b"busy":
            raise SessionConflict("another request is writing this session; try again when it has ended")
        return token, Session.from_bytes(reply[1]) if len(reply) > 1 and reply[1] else None

    def renew(self, session_id: str, token: str, lease_s: float) -> None:
        self._must_hold(self._ask(lambda: self._renew(keys=_keys(session_id), args=[token, _ms(lease_s)])))

    def commit(self, session_id: str, token: str, session: Session) -> None:
        args: list[str | bytes | int] = [token, session.to_bytes(), self._ttl_s]
        self._must_hold(self._ask(lambda: self._commit(keys=_keys(session_id), args=args)))

    def abandon(self, session_id: str, token: str) -> None:
        self._ask(lambda: self._abandon(keys=_keys(session_id), args=[token]))

    def delete(self, session_id: str) -> bool:
        record, turn = _keys(session_id)

        def both() -> Any:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.delete(record)
                pipe.delete(turn)
                return pipe.execute()

        return bool(self._ask(both)[0])

    def ping(self) -> None:
        self._ask(self._client.ping)

    def _ask(self, command: Callable[[], Any]) -> Any:
        if time.monotonic() < self._away_until:
            raise StoreAway("the session store did not answer a moment ago")
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError) as e:
            self._away_until = time.monotonic() + _PAUSE_S
            raise StoreAway("the session store does not answer") from e
        except redis.RedisError as e:
            raise StoreAway(f"the session store refused: {e}") from e

    @staticmethod
    def _must_hold(reply: Any) -> None:
        if not cast(int, reply):
            raise SessionConflict("this turn lost its session: it took too long, or the session was deleted")


def _keys(session_id: str) -> list[str]:
    record = f"lh:{{{key_of(session_id)}}}"
    return [record, f"{record}:turn"]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
