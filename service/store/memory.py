"""Sessions in this process: for one worker, for tests, and the plain model that Redis is compared with."""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import dataclass

from service.errors import SessionConflict, UnknownSession
from service.store.sessions import Session, key_of


@dataclass(slots=True)
class _Lease:
    token: str
    until: float  # time.monotonic()


class MemorySessions:
    """Implements `SessionStore`. It keeps bytes, as Redis does, so that nothing is shared with the caller."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._sessions: dict[str, tuple[bytes, float]] = {}  # key -> record, when it expires
        self._leases: dict[str, _Lease] = {}

    def load(self, session_id: str) -> Session | None:
        key = key_of(session_id)
        with self._lock:
            data = self._get(key)
            if data is None:
                return None
            self._put(key, data)
        return Session.from_bytes(data)

    def begin(self, session_id: str, *, is_new: bool, lease_s: float) -> tuple[str, Session | None]:
        key, token = key_of(session_id), secrets.token_hex(8)
        with self._lock:
            data = None if is_new else self._get(key)
            if data is None and not is_new:
                raise UnknownSession("no such session: it never was, was deleted, or has expired")
            if self._lease(key) is not None:
                raise SessionConflict("another request is writing this session; try again when it has ended")
            self._leases[key] = _Lease(token, time.monotonic() + lease_s)
        return token, None if data is None else Session.from_bytes(data)

    def renew(self, session_id: str, token: str, lease_s: float) -> None:
        with self._lock:
            self._check(key_of(session_id), token).until = time.monotonic() + lease_s

    def commit(self, session_id: str, token: str, session: Session) -> None:
        key = key_of(session_id)
        with self._lock:
            self._check(key, token)
            self._put(key, session.to_bytes())
            del self._leases[key]

    def abandon(self, session_id: str, token: str) -> None:
        key = key_of(session_id)
        with self._lock:
            lease = self._leases.get(key)
            if lease is not None and lease.token == token:
                del self._leases[key]

    def delete(self, session_id: str) -> bool:
        key = key_of(session_id)
        with self._lock:
            existed = self._get(key) is not None
            self._sessions.pop(key, None)
            self._leases.pop(key, None)
        return existed

    def ping(self) -> None:
        return None

    def _get(self, key: str) -> bytes | None:
        record = self._sessions.get(key)
        if record is None or record[1] <= time.monotonic():
            self._sessions.pop(key, None)
            return None
        return record[0]

    def _put(self, key: str, data: bytes) -> None:
        now = time.monotonic()
        self._sessions.pop(key, None)
        self._sessions[key] = (data, now + self._ttl_s)  # in order of expiry, for every record has the same ttl
        while self._sessions and next(iter(self._sessions.values()))[1] <= now:
            del self._sessions[next(iter(self._sessions))]

    def _lease(self, key: str) -> _Lease | None:
        lease = self._leases.get(key)
        if lease is not None and lease.until <= time.monotonic():
            del self._leases[key]
            return None
        return lease

    def _check(self, key: str, token: str) -> _Lease:
        lease = self._lease(key)
        if lease is None or lease.token != token:
            raise SessionConflict("this turn lost its session: it took too long, or the session was deleted")
        return lease
