"""Sessions in the memory of this process: for one worker, for tests, and as the model that Redis is compared with."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from cachetools import TTLCache

from service.errors import KEY_REUSED, KeyReused, SessionBusy, SessionConflict, UnknownSession
from service.store.sessions import (
    LEASE_HELD,
    LEASE_LOST,
    MAX_IDEMPOTENCY_KEYS,
    LeasedSession,
    Session,
    StoredTurn,
    TurnRecord,
    decode_model,
    decode_stored,
    digest,
    new_token,
)

_TurnFields = dict[str, Any]  # as in Redis: token, until, key, keys, and sessions.TURN_FIELDS


class MemorySessions:
    """Implements `SessionStore`. It keeps bytes, as Redis does, so that nothing is shared with the caller."""

    def __init__(self, ttl_s: float, turn_ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty store.

        Args:
            ttl_s: A session expires this long after its last use.
            turn_ttl_s: A turn expires this long after its last write.
            clock: The time in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._records: TTLCache[str, bytes] = TTLCache(math.inf, ttl_s, timer=clock)
        self._turns: TTLCache[str, _TurnFields] = TTLCache(math.inf, turn_ttl_s, timer=clock)
        self._salts: TTLCache[str, str] = TTLCache(math.inf, ttl_s, timer=clock)

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        """Implement SessionStore.load."""
        name = digest(session_id)
        with self._lock:
            data, turn = self._records.get(name), self._turns.get(name, {})
            if data is not None:
                self._records[name] = data
            return decode_stored(data, turn, self._now_ms())

    def model_of(self, session_id: str) -> str | None:
        """Implement SessionStore.model_of."""
        name = digest(session_id)
        with self._lock:
            return decode_model(self._records.get(name), self._turns.get(name, {}).get("turn"))

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
        name, token = digest(session_id), new_token()
        with self._lock:
            data, turn = self._records.get(name), self._turns.get(name, {})
            if data is None and not is_new and not turn.get("turn"):
                raise UnknownSession("the session does not exist or has expired")
            has_same_key = bool(key) and turn.get("key") == key
            if turn.get("until", 0) > self._now_ms() and not force and not has_same_key:
                raise SessionBusy(LEASE_HELD)
            session, stored = decode_stored(data, {**turn, "until": 0}, self._now_ms())
            if has_same_key and stored is not None and stored.record.request != request:
                raise KeyReused(KEY_REUSED)
            leased = LeasedSession(token, session, stored, key in turn.get("keys", []))
            self._turns[name] = {**turn, "token": token, "until": self._now_ms(lease_s)}
        return leased

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        """Implement SessionStore.begin."""
        name = digest(session_id)
        start_bytes = start.to_bytes() if start else None
        with self._lock:
            fields = self._leased_fields(name, token)
            if fields is None:
                return False
            if start_bytes is None:
                self._records.pop(name, None)
            else:
                self._records[name] = start_bytes
            if turn.key:
                fields["keys"] = [*fields.get("keys", []), turn.key][-MAX_IDEMPOTENCY_KEYS:]
            new = {"turn": turn.to_bytes(), "start": start_bytes, "before": None, "end": None, "key": turn.key}
            fields.update(new, until=self._now_ms(lease_s))
            return True

    def create_turn(self, session_id: str, token: str, turn: TurnRecord, lease_s: float) -> None:
        """Implement SessionStore.create_turn."""
        record = turn.to_bytes()
        with self._lock:
            self._turns[digest(session_id)] = {"token": token, "turn": record, "until": self._now_ms(lease_s)}

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        """Implement SessionStore.renew."""
        with self._lock:
            fields = self._leased_fields(digest(session_id), token)
            if fields is not None:
                fields["until"] = self._now_ms(lease_s)
            return fields is not None

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        """Implement SessionStore.save."""
        name = digest(session_id)
        with self._lock:
            fields = self._leased_fields(name, token)
            if fields is None:
                return False
            fields.update(before=self._records.get(name), until=self._now_ms(lease_s))
            self._records[name] = session.to_bytes()
            return True

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        """Implement SessionStore.commit."""
        name = digest(session_id)
        with self._lock:
            fields = self._leased_fields(name, token)
            if fields is None:
                return False
            fields.update(before=None, end=finish_reason.encode(), until=0)
            self._records[name] = session.to_bytes()
            return True

    def abandon(self, session_id: str, token: str) -> None:
        """Implement SessionStore.abandon."""
        name = digest(session_id)
        with self._lock:
            fields = self._turns.get(name)
            if fields is not None and fields["token"] == token:
                fields["until"] = 0
                if not fields.get("turn"):
                    self._turns.pop(name, None)

    def discard(self, session_id: str, token: str) -> None:
        """Implement SessionStore.discard."""
        name = digest(session_id)
        with self._lock:
            fields = self._turns.get(name)
            if fields is None or fields["token"] != token:
                return
            keys = [key for key in fields.get("keys", []) if key != fields.get("key")]
            self._turns.pop(name)
            if keys:
                self._turns[name] = {"token": token, "until": 0, "keys": keys}

    def create(self, session_id: str, session: Session) -> None:
        """Implement SessionStore.create."""
        with self._lock:
            self._records[digest(session_id)] = session.to_bytes()

    def delete(self, session_id: str) -> bool:
        """Implement SessionStore.delete."""
        name = digest(session_id)
        with self._lock:
            deleted = [self._records.pop(name, None), self._turns.pop(name, None)]
            return deleted != [None, None]

    def idempotency_salt(self, key: str) -> str:
        """Implement SessionStore.idempotency_salt."""
        with self._lock:
            salt = self._salts.get(key) or secrets.token_hex(16)
            self._salts[key] = salt
            return salt

    def ping(self) -> None:
        """Implement SessionStore.ping: memory always answers."""

    def _leased_fields(self, name: str, token: str) -> _TurnFields | None:
        """The turn's fields, with a new time to live; None if there is none.

        Raises:
            SessionConflict: The token is no longer the session's.
        """
        fields = self._turns.get(name)
        if fields is None:
            return None
        if fields["token"] != token:
            raise SessionConflict(LEASE_LOST)
        self._turns[name] = fields
        return fields

    def _now_ms(self, plus_s: float = 0.0) -> int:
        return round((self._clock() + plus_s) * 1000)
