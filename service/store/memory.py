"""Sessions in this process: for one worker, for tests, and the plain model that Redis is compared with."""

from __future__ import annotations

import secrets
import threading
import time
from typing import Any

from service.errors import SessionConflict, UnknownSession
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


class MemorySessions:
    """Implements `SessionStore`. It keeps bytes, as Redis does, so that nothing is shared with the caller."""

    def __init__(self, ttl_s: float, turn_ttl_s: float = 900.0) -> None:
        self._ttl_s = ttl_s
        self._turn_ttl_s = turn_ttl_s
        self._lock = threading.Lock()
        self._records = _Expiring()
        self._turns = _Expiring()  # the fields of a turn: token, until, keys, and what turn_of reads
        self._salts = _Expiring()

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        key = digest(session_id)
        with self._lock:
            data, turn = self._records.get(key), self._turns.get(key)
            if data is not None:
                self._records.put(key, data, self._ttl_s)
        return Session.from_bytes(data) if data else None, turn_of(turn or {}, _now_ms())

    def acquire(
        self, session_id: str, *, lease_s: float, is_new: bool = False, force: bool = False, key: str = ""
    ) -> LeasedSession:
        at, token = digest(session_id), secrets.token_hex(8)
        with self._lock:
            data, turn = self._records.get(at), self._turns.get(at) or {}
            if data is None and not is_new and not turn.get("turn"):
                raise UnknownSession(NO_SESSION)
            same = bool(key) and turn.get("key") == key
            if turn.get("until", 0) > _now_ms() and not force and not same:
                raise SessionConflict(BUSY)
            last = turn_of({**turn, "until": 0}, _now_ms())
            knows = key in turn.get("keys", [])
            self._turns.put(at, {**turn, "token": token, "until": _now_ms(lease_s)}, self._turn_ttl_s)
        return LeasedSession(token, None if data is None else Session.from_bytes(data), last, knows)

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        new = {
            "turn": turn.to_bytes(),
            "start": start.to_bytes() if start else None,
            "before": None,
            "end": None,
            "key": turn.key,
        }
        with self._lock:
            fields = self._held(digest(session_id), token)
            if fields is None:
                return False
            if new["start"] is None:
                self._records.drop(digest(session_id))
            else:
                self._records.put(digest(session_id), new["start"], self._ttl_s)
            keys = [*fields.get("keys", []), turn.key][-KEYS_KEPT:] if turn.key else fields.get("keys", [])
            fields.update(new, keys=keys, until=_now_ms(lease_s))
            return True

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        with self._lock:
            fields = self._held(digest(session_id), token)
            if fields is not None:
                fields["until"] = _now_ms(lease_s)
            return fields is not None

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        at = digest(session_id)
        with self._lock:
            fields = self._held(at, token)
            if fields is None:
                return False
            fields.update(before=self._records.get(at), until=_now_ms(lease_s))
            self._records.put(at, session.to_bytes(), self._ttl_s)
            return True

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        at = digest(session_id)
        with self._lock:
            fields = self._held(at, token)
            if fields is None:
                return False
            fields.update(before=None, end=finish_reason.encode(), until=0)
            self._records.put(at, session.to_bytes(), self._ttl_s)
            return True

    def abandon(self, session_id: str, token: str) -> None:
        at = digest(session_id)
        with self._lock:
            fields = self._turns.get(at)
            if fields is not None and fields["token"] == token:
                fields["until"] = 0
                if not fields.get("turn"):
                    self._turns.drop(at)

    def create(self, session_id: str, session: Session) -> None:
        with self._lock:
            self._records.put(digest(session_id), session.to_bytes(), self._ttl_s)

    def delete(self, session_id: str) -> bool:
        at = digest(session_id)
        with self._lock:
            existed = self._records.drop(at)
            return self._turns.drop(at) or existed

    def salt_of(self, key: str) -> str:
        with self._lock:
            salt = self._salts.get(key) or secrets.token_hex(16)
            self._salts.put(key, salt, self._ttl_s)
            return str(salt)

    def ping(self) -> None:
        return None

    def _held(self, at: str, token: str) -> dict[str, Any] | None:
        """The turn's fields if the token holds it, kept for longer; None if nothing is there."""
        fields: dict[str, Any] | None = self._turns.get(at)
        if fields is None:
            return None
        if fields["token"] != token:
            raise SessionConflict(LOST)
        self._turns.put(at, fields, self._turn_ttl_s)
        return fields


class _Expiring:
    """Values that are forgotten some time after they were last put. Not thread-safe."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, float]] = {}

    def get(self, key: str) -> Any:
        value, until = self._values.get(key, (None, 0.0))
        return value if until > time.monotonic() else None

    def put(self, key: str, value: Any, ttl_s: float) -> None:
        now = time.monotonic()
        self._values.pop(key, None)  # to the end: with one ttl, the order is that of expiry
        self._values[key] = (value, now + ttl_s)
        while self._values and next(iter(self._values.values()))[1] <= now:
            del self._values[next(iter(self._values))]

    def drop(self, key: str) -> bool:
        return self.get(key) is not None and self._values.pop(key, None) is not None


def _now_ms(plus_s: float = 0.0) -> int:
    return round((time.monotonic() + plus_s) * 1000)
