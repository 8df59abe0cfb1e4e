"""Sessions in Redis: two keys a session at most, one round trip an operation, checked inside Redis by small scripts.

    lh:{digest}        the record, as Session.to_bytes; expires SESSION_TTL_S after its last use
    lh:{digest}:turn   a hash: the turn that writes it, or wrote it last; expires TURN_TTL_S after its last write
                         token, until   who may write, and until when (ms of Redis's clock)
                         turn           TurnRecord: enough to write its text again
                         start, before  records: before the turn, and the save before the newest
                         end            its finish_reason, once it has ended
                         key, keys      digests of its Idempotency-Key, and of those before
    lh:salt:{digest}   what makes a session's id out of an Idempotency-Key

The first two share a hash tag, so a cluster keeps them together. When Redis does not answer, every call raises
StoreUnavailable, and for a second after that without asking again: threads must not pile up behind timeouts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import redis

from service.errors import SessionConflict, StoreUnavailable, UnknownSession
from service.store.sessions import (
    BUSY,
    KEYS_KEPT,
    LOST,
    NO_SESSION,
    LeasedSession,
    Session,
    StoredTurn,
    TurnRecord,
    digest,
    turn_of,
)

_PAUSE_S = 1.0
_FIELDS = ("turn", "start", "before", "end", "until")

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
_HELD = (
    _NOW
    + """
local token = redis.call('HGET', KEYS[2], 'token')
if not token then return 0 end
if token ~= ARGV[1] then return -1 end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""
)
_LOAD = (
    _NOW
    + """
local record = redis.call('GETEX', KEYS[1], 'EX', ARGV[1])
return {record, now, redis.call('HMGET', KEYS[2], 'turn', 'start', 'before', 'end', 'until')}
"""
)
_ACQUIRE = (
    _NOW
    + """
local token, lease, ttl, new, force, key = unpack(ARGV)
local turn = redis.call('HMGET', KEYS[2], 'turn', 'start', 'before', 'end', 'until', 'token', 'key', 'keys')
local record = redis.call('GET', KEYS[1])
if new == '0' and not record and not turn[1] then return {'unknown'} end
local same = key ~= '' and turn[7] == key
if turn[6] ~= token and tonumber(turn[5] or 0) > now and force == '0' and not same then return {'busy'} end
redis.call('HSET', KEYS[2], 'token', token, 'until', now + lease)
redis.call('PEXPIRE', KEYS[2], ttl)
local knows = key ~= '' and turn[8] and string.find(turn[8], key, 1, true)
return {'ok', record, {turn[1], turn[2], turn[3], turn[4], 0}, knows and 1 or 0}
"""
)
_BEGIN = (
    _HELD
    + """
local lease, turn, start, key, kept = ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local keys = (redis.call('HGET', KEYS[2], 'keys') or '') .. key
redis.call('HDEL', KEYS[2], 'before', 'end')
if start ~= '' then redis.call('SET', KEYS[1], start, 'EX', ARGV[8]) else redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[2], 'turn', turn, 'start', start, 'key', key, 'until', now + lease)
if key ~= '' then redis.call('HSET', KEYS[2], 'keys', string.sub(keys, -kept * #key)) end
return 1
"""
)
_RENEW = _HELD + "redis.call('HSET', KEYS[2], 'until', now + ARGV[3])\nreturn 1"
_SAVE = (
    _HELD
    + """
local before = redis.call('GET', KEYS[1])
if before then redis.call('HSET', KEYS[2], 'before', before) end
redis.call('HSET', KEYS[2], 'until', now + ARGV[3])
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5])
return 1
"""
)
_COMMIT = (
    _HELD
    + """
redis.call('HDEL', KEYS[2], 'before')
redis.call('HSET', KEYS[2], 'end', ARGV[5], 'until', 0)
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[4])
return 1
"""
)
_ABANDON = """
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], 'until', 0)
if redis.call('HEXISTS', KEYS[2], 'turn') == 0 then redis.call('DEL', KEYS[2]) end
return 1
"""


class RedisSessions:
    """Implements `SessionStore`."""

    def __init__(self, client: Any, ttl_s: int, turn_ttl_s: int = 900) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._turn_ttl_ms = turn_ttl_s * 1000
        self._away_until = 0.0
        names = {"load": _LOAD, "acquire": _ACQUIRE, "begin": _BEGIN, "renew": _RENEW, "save": _SAVE}
        names |= {"commit": _COMMIT, "abandon": _ABANDON}
        self._scripts = {name: client.register_script(text) for name, text in names.items()}

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        record, now_ms, fields = self._run("load", session_id, self._ttl_s)
        return Session.from_bytes(record) if record else None, turn_of(dict(zip(_FIELDS, fields, strict=True)), now_ms)

    def acquire(
        self, session_id: str, *, lease_s: float, is_new: bool = False, force: bool = False, key: str = ""
    ) -> LeasedSession:
        token = secrets.token_hex(8)
        args = (token, _ms(lease_s), self._turn_ttl_ms, int(is_new), int(force), key)
        reply = self._run("acquire", session_id, *args)
        if reply[0] == b"unknown":
            raise UnknownSession(NO_SESSION)
        if reply[0] == b"busy":
            raise SessionConflict(BUSY)
        _, record, fields, knows_key = reply
        last = turn_of(dict(zip(_FIELDS, fields, strict=True)), 0)
        return LeasedSession(token, Session.from_bytes(record) if record else None, last, bool(knows_key))

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        record = start.to_bytes() if start else b""
        args = (_ms(lease_s), turn.to_bytes(), record, turn.key, KEYS_KEPT, self._ttl_s)
        return self._write("begin", session_id, token, *args)

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        return self._write("renew", session_id, token, _ms(lease_s))

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        return self._write("save", session_id, token, _ms(lease_s), session.to_bytes(), self._ttl_s)

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        return self._write("commit", session_id, token, session.to_bytes(), self._ttl_s, finish_reason)

    def abandon(self, session_id: str, token: str) -> None:
        self._run("abandon", session_id, token)

    def create(self, session_id: str, session: Session) -> None:
        self._ask(lambda: self._client.set(_keys(session_id)[0], session.to_bytes(), ex=self._ttl_s))

    def delete(self, session_id: str) -> bool:
        return bool(self._ask(lambda: self._client.delete(*_keys(session_id))))

    def salt_of(self, key: str) -> str:
        salt, name = secrets.token_hex(16), f"lh:salt:{key}"
        found = self._ask(lambda: self._client.set(name, salt, nx=True, ex=self._ttl_s, get=False))
        return salt if found else str(self._ask(lambda: self._client.getex(name, ex=self._ttl_s)).decode())

    def ping(self) -> None:
        self._ask(self._client.ping)

    def _write(self, script: str, session_id: str, token: str, *args: str | bytes | int) -> bool:
        reply = int(self._run(script, session_id, token, self._turn_ttl_ms, *args))
        if reply < 0:
            raise SessionConflict(LOST)
        return bool(reply)

    def _run(self, script: str, session_id: str, *args: str | bytes | int) -> Any:
        return self._ask(lambda: self._scripts[script](keys=_keys(session_id), args=args))

    def _ask(self, command: Callable[[], Any]) -> Any:
        if time.monotonic() < self._away_until:
            raise StoreUnavailable("the session store did not answer a moment ago")
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError) as e:
            self._away_until = time.monotonic() + _PAUSE_S
            raise StoreUnavailable("the session store does not answer") from e
        except redis.RedisError as e:
            raise StoreUnavailable(f"the session store refused: {e}") from e


def _keys(session_id: str) -> list[str]:
    record = f"lh:{{{digest(session_id)}}}"
    return [record, f"{record}:turn"]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
