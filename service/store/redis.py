"""Sessions in Redis: at most two keys for each, one round trip for an operation, which a Lua script checks in Redis.

    lh:{digest}        the session, as Session.to_bytes; expires SESSION_TTL_S after its last use
    lh:{digest}:turn   a hash: the session's running or last turn; expires TURN_TTL_S after its last write
                         token, until   who holds the lease, and until when (ms of Redis's clock)
                         lease          its length (ms): more cannot be left of it, unless the clock was set back
                         turn           TurnRecord.to_bytes
                         start, before  Session.to_bytes: before the turn, and the save before the newest
                         end            the finish reason, once the turn has ended
                         key, keys      digests of the turn's Idempotency-Key, and of those of the turns before it
    lh:salt:{digest}   the random value from which the id of a session is made of an Idempotency-Key

The first two share a hash tag, so that a cluster keeps them on one node. If Redis does not answer, every call raises
StoreUnavailable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import redis

from service.errors import (
    KEY_REUSED,
    KeyReused,
    SessionBusy,
    SessionConflict,
    StoreUnavailable,
    UnknownSession,
    UnreadableSession,
)
from service.store.sessions import (
    HEAD_BYTES,
    LEASE_HELD,
    LEASE_LOST,
    MAX_IDEMPOTENCY_KEYS,
    TURN_FIELDS,
    LeasedSession,
    Session,
    StoredTurn,
    TurnRecord,
    decode_model,
    decode_stored,
    digest,
    new_token,
)

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""
_CHECK_LEASE = (
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
_MODEL = """
local head = redis.call('GETRANGE', KEYS[1], 0, ARGV[1] - 1)
if head ~= '' then return {head, false} end
return {false, redis.call('HGET', KEYS[2], 'turn')}
"""
_ACQUIRE = (
    _NOW
    + """
local token, lease, ttl, is_new, force, key, request = unpack(ARGV)
local turn = redis.call('HMGET', KEYS[2], 'turn', 'start', 'before', 'end', 'until', 'token', 'key', 'keys', 'lease')
local record = redis.call('GET', KEYS[1])
if is_new == '0' and not record and not turn[1] then return {'unknown'} end
local same_key = key ~= '' and turn[7] == key
if same_key and turn[1] then
  local is_json, stored = pcall(cjson.decode, turn[1])
  if is_json and type(stored) == 'table' and stored.request ~= request then return {'reused'} end
end
local left = (tonumber(turn[5]) or 0) - now
local is_held = left > 0 and left <= (tonumber(turn[9]) or left)
if turn[6] ~= token and is_held and force == '0' and not same_key then return {'busy'} end
redis.call('HSET', KEYS[2], 'token', token, 'until', now + lease, 'lease', lease)
redis.call('PEXPIRE', KEYS[2], ttl)
local has_key = key ~= '' and turn[8] and string.find(turn[8], key, 1, true)
return {'ok', record, {turn[1], turn[2], turn[3], turn[4], 0}, has_key and 1 or 0}
"""
)
_BEGIN = (
    _CHECK_LEASE
    + """
local lease, turn, start, key, max_keys = ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])
local keys = (redis.call('HGET', KEYS[2], 'keys') or '') .. key
redis.call('HDEL', KEYS[2], 'before', 'end')
if start ~= '' then redis.call('SET', KEYS[1], start, 'EX', ARGV[8]) else redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[2], 'turn', turn, 'start', start, 'key', key, 'until', now + lease)
if key ~= '' then redis.call('HSET', KEYS[2], 'keys', string.sub(keys, -max_keys * #key)) end
return 1
"""
)
_CREATE_TURN = (
    _NOW
    + """
local token, ttl, lease, turn = unpack(ARGV)
redis.call('HSET', KEYS[2], 'token', token, 'until', now + lease, 'lease', lease, 'turn', turn, 'start', '', 'key', '')
redis.call('PEXPIRE', KEYS[2], ttl)
"""
)
_RENEW = _CHECK_LEASE + "redis.call('HSET', KEYS[2], 'until', now + ARGV[3])\nreturn 1"
_SAVE = (
    _CHECK_LEASE
    + """
local before = redis.call('GET', KEYS[1])
if before then redis.call('HSET', KEYS[2], 'before', before) end
redis.call('HSET', KEYS[2], 'until', now + ARGV[3])
redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5])
return 1
"""
)
_COMMIT = (
    _CHECK_LEASE
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
_DISCARD = """
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return 0 end
local found = redis.call('HMGET', KEYS[2], 'key', 'keys')
local key, keys = found[1] or '', found[2] or ''
redis.call('HDEL', KEYS[2], 'turn', 'start', 'before', 'end', 'key')
redis.call('HSET', KEYS[2], 'until', 0, 'keys', string.sub(keys, 1, #keys - #key))
if #keys == #key then redis.call('DEL', KEYS[2]) end
return 1
"""


class RedisSessions:
    """Implements `SessionStore`."""

    def __init__(self, client: Any, ttl_s: int, turn_ttl_s: int) -> None:
        """Use a client; nothing is sent yet.

        Args:
            client: As store.connect makes it.
            ttl_s: A session expires this long after its last use.
            turn_ttl_s: A turn expires this long after its last write.
        """
        self._client = client
        self._ttl_s = ttl_s
        self._turn_ttl_ms = turn_ttl_s * 1000
        sources = {"load": _LOAD, "model": _MODEL, "acquire": _ACQUIRE, "begin": _BEGIN, "renew": _RENEW, "save": _SAVE}
        sources |= {"commit": _COMMIT, "abandon": _ABANDON, "discard": _DISCARD, "create_turn": _CREATE_TURN}
        self._scripts = {name: client.register_script(source) for name, source in sources.items()}

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        """Implement SessionStore.load."""
        record, now_ms, fields = self._run("load", session_id, self._ttl_s)
        return decode_stored(record, dict(zip(TURN_FIELDS, fields, strict=True)), now_ms)

    def model_of(self, session_id: str) -> str | None:
        """Implement SessionStore.model_of."""
        return decode_model(*self._run("model", session_id, HEAD_BYTES))

    def acquire(
        self,
        session_id: str,
        *,
        lease_s: float,
        is_new: bool = False,
        force: bool = False,
        key: str = "",
        request: str = "",
    ) -> LeasedSession:
        """Implement SessionStore.acquire."""
        token = new_token()
        args = (token, _ms(lease_s), self._turn_ttl_ms, int(is_new), int(force), key, request)
        reply = self._run("acquire", session_id, *args)
        if reply[0] == b"unknown":
            raise UnknownSession("the session does not exist or has expired")
        if reply[0] == b"reused":
            raise KeyReused(KEY_REUSED)
        if reply[0] == b"busy":
            raise SessionBusy(LEASE_HELD)
        _, record, fields, has_key = reply
        try:
            session, turn = decode_stored(record, dict(zip(TURN_FIELDS, fields, strict=True)), 0)
            return LeasedSession(token, session, turn, bool(has_key))
        except UnreadableSession:
            self.abandon(session_id, token)
            raise

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        """Implement SessionStore.begin."""
        record = start.to_bytes() if start else b""
        args = (_ms(lease_s), turn.to_bytes(), record, turn.key, MAX_IDEMPOTENCY_KEYS, self._ttl_s)
        return self._write("begin", session_id, token, *args)

    def create_turn(self, session_id: str, token: str, turn: TurnRecord, lease_s: float) -> None:
        """Implement SessionStore.create_turn."""
        self._run("create_turn", session_id, token, self._turn_ttl_ms, _ms(lease_s), turn.to_bytes())

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        """Implement SessionStore.renew."""
        return self._write("renew", session_id, token, _ms(lease_s))

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        """Implement SessionStore.save."""
        return self._write("save", session_id, token, _ms(lease_s), session.to_bytes(), self._ttl_s)

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        """Implement SessionStore.commit."""
        return self._write("commit", session_id, token, session.to_bytes(), self._ttl_s, finish_reason)

    def abandon(self, session_id: str, token: str) -> None:
        """Implement SessionStore.abandon."""
        self._run("abandon", session_id, token)

    def discard(self, session_id: str, token: str) -> None:
        """Implement SessionStore.discard."""
        self._run("discard", session_id, token)

    def create(self, session_id: str, session: Session) -> None:
        """Implement SessionStore.create."""
        self._call(lambda: self._client.set(_keys(session_id)[0], session.to_bytes(), ex=self._ttl_s))

    def delete(self, session_id: str) -> bool:
        """Implement SessionStore.delete."""
        return bool(self._call(lambda: self._client.delete(*_keys(session_id))))

    def idempotency_salt(self, key: str) -> str:
        """Implement SessionStore.idempotency_salt."""
        salt, name = secrets.token_hex(16), f"lh:salt:{key}"
        if self._call(lambda: self._client.set(name, salt, nx=True, ex=self._ttl_s)):
            return salt
        stored: bytes | None = self._call(lambda: self._client.getex(name, ex=self._ttl_s))
        if stored is None:  # it expired in between
            return self.idempotency_salt(key)
        return stored.decode(errors="replace")

    def ping(self) -> None:
        """Implement SessionStore.ping."""
        self._call(self._client.ping)

    def _write(self, script: str, session_id: str, token: str, *args: str | bytes | int) -> bool:
        reply = int(self._run(script, session_id, token, self._turn_ttl_ms, *args))
        if reply < 0:
            raise SessionConflict(LEASE_LOST)
        return bool(reply)

    def _run(self, script: str, session_id: str, *args: str | bytes | int) -> Any:
        def run() -> Any:
            return self._scripts[script](keys=_keys(session_id), args=args)

        def run_again_if_missing() -> Any:
            try:
                return run()
            except redis.exceptions.NoScriptError:  # loaded into one server, then run on the one that took over
                return run()

        return self._call(run_again_if_missing)

    def _call(self, command: Callable[[], Any]) -> Any:
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError) as e:
            raise StoreUnavailable("the session store does not answer") from e
        except redis.RedisError as e:
            raise StoreUnavailable(f"the session store answered with an error: {e}") from e


def _keys(session_id: str) -> list[str]:
    """The keys of the session and of its turn."""
    record = f"lh:{{{digest(session_id)}}}"
    return [record, f"{record}:turn"]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
