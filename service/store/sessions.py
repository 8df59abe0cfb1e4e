"""A stored session, the turn that is writing it, and what every store of them promises.

A turn is one request that is being answered. Only one writes a session at a time: it holds a token, and every write is
checked against it; who takes a turn over sets another token, and from then on the old one cannot write. A turn is
remembered for a while after its end, so that a client that lost its stream can have it again from any character.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from model.errors import StateError
from model.network.sampling import SamplingParams
from model.network.state import HiddenState

RECENT_TEXT_CHARS = 1024
SESSION_ID = "[A-Za-z0-9_-]{22,64}"
_LAYOUT = 2
_HEAD = struct.Struct("<BQI")  # layout, seed, bytes of the state


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What is kept of a text between requests."""

    state: HiddenState
    seed: int
    recent_text: str  # the last RECENT_TEXT_CHARS of its text, for a model that must read it anew

    @property
    def position(self) -> int:
        return self.state.position

    def to_bytes(self) -> bytes:
        """Layout 2: layout, seed and the state's length, the state, the recent_text in UTF-8."""
        state = self.state.to_bytes()
        return _HEAD.pack(_LAYOUT, self.seed, len(state)) + state + self.recent_text.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """Raised: StateError when the bytes are not a whole session of a layout that is known."""
        try:
            reader = _READERS[data[0]]
        except LookupError as e:
            raise StateError(f"session: layout {data[:1].hex()!r}, expected one of {sorted(_READERS)}") from e
        try:
            return reader(data)
        except (struct.error, ValueError, KeyError, TypeError) as e:
            raise StateError(f"session: {len(data)} bytes that are not a stored session ({e})") from e


def _read_layout_1(data: bytes) -> Session:
    """Layout byte, header length, a JSON header with seed and state_bytes, the state, the recent_text."""
    (length,) = struct.unpack_from("<H", data, 1)
    header = json.loads(data[3 : 3 + length])
    end = 3 + length + int(header["state_bytes"])
    return Session(HiddenState.from_bytes(data[3 + length : end]), int(header["seed"]), data[end:].decode())


def _read_layout_2(data: bytes) -> Session:
    _, seed, length = _HEAD.unpack_from(data)
    end = _HEAD.size + length
    return Session(HiddenState.from_bytes(data[_HEAD.size : end]), seed, data[end:].decode())


_READERS: dict[int, Callable[[bytes], Session]] = {1: _read_layout_1, 2: _read_layout_2}


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """All that is needed to write a turn's text again, to the character: it is a function of this and of its start."""

    start: int  # the session's position before it
    prompt: str  # as it was read: without what was skipped
    max_chars: int
    sampling: SamplingParams
    stop: list[str]
    seed: int
    fingerprint: str  # of the model that writes it
    numerics: str
    reencoded: bool = False
    key: str = ""  # a digest of its Idempotency-Key, if it has one
    request: str = ""  # a digest of what was asked

    @property
    def first(self) -> int:
        """The session's position at which its own text begins."""
        return self.start + len(self.prompt)

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> TurnRecord:
        """Decode what `to_bytes` of this version or of the one before it wrote.

        Raises:
            StateError: The bytes are not a stored turn, or a sampling parameter in it is not known to this version.
        """
        try:
            fields = json.loads(data)
            if "sampling" not in fields:  # until 0.1 the sampling parameters were fields of the record
                fields["sampling"] = {name: fields.pop(name) for name in ("temperature", "top_k", "top_p", "min_p")}
                fields["reencoded"] = fields.pop("reprimed")
            return cls(**{**fields, "sampling": SamplingParams.from_dict(fields["sampling"])})
        except (ValueError, TypeError, KeyError) as e:
            raise StateError(f"turn: {len(data)} bytes that are not a stored turn ({e})") from e


@dataclass(frozen=True, slots=True, eq=False)
class StoredTurn:
    """The turn that a session remembers. Its states stand at the turn's start, and where it was last saved."""

    record: TurnRecord
    start: Session | None  # before it; None for a session that began with it
    before: Session | None  # the save before the session's newest, while the turn runs
    finish_reason: str  # empty while it runs, or for ever if its worker died
    is_running: bool  # whether someone holds its lease


@dataclass(frozen=True, slots=True, eq=False)
class LeasedSession:
    """A session whose lease is ours."""

    token: str
    session: Session | None  # None: it is new
    last: StoredTurn | None
    knows_key: bool = field(default=False)  # whether the asked Idempotency-Key was used in this session before


def new_session_id() -> str:
    """A capability of 192 bits: who knows it may read and go on with the session."""
    return secrets.token_urlsafe(24)


def digest(*parts: str) -> str:
    """What stands for a secret in the store: who can look into the store gets no session by it."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class SessionStore(Protocol):
    """Every method may raise StoreUnavailable; what else each raises is said there.

    A write by a token that is no longer the session's raises SessionConflict; a write to a session that is not there
    any more (deleted, or the store lost its memory) says so by returning False.
    """

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        """A session as it was last saved, and the turn that it remembers; its time to live starts anew.

        A session whose first turn has not been saved yet is (None, turn); one that is not there (None, None).
        """
        ...

    def acquire(
        self, session_id: str, *, lease_s: float, is_new: bool = False, force: bool = False, key: str = ""
    ) -> LeasedSession:
        """Take the lease. `force`, or the key of the turn that holds it, takes it from a holder that still has it.

        Raised: UnknownSession, SessionConflict while another holds the lease.
        """
        ...

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        """Remember the turn that now begins, in place of the last one, and put the session where it starts."""
        ...

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        """Keep a lease that takes longer."""
        ...

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        """Store where the running turn is, and keep the lease."""
        ...

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        """Store where the turn ended, and give the lease back; again with the same token is the same."""
        ...

    def abandon(self, session_id: str, token: str) -> None:
        """Give the lease back with nothing stored; nothing happens when it was lost."""
        ...

    def create(self, session_id: str, session: Session) -> None:
        """Store a session that is nobody's turn: a fork."""
        ...

    def delete(self, session_id: str) -> bool:
        """Forget all of a session, its turn included; whether there was one."""
        ...

    def salt_of(self, key: str) -> str:
        """The random value that goes with an Idempotency-Key; the first who asks makes it."""
        ...

    def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        ...


NO_SESSION = "no such session: it never was, was deleted, or has expired"
BUSY = "another request is writing this session; try again when it has ended, or take its stream over"
LOST = "another request has taken this session over"
KEYS_KEPT = 32  # Idempotency-Keys that a session remembers


def turn_of(fields: dict[str, Any], now_ms: int) -> StoredTurn | None:
    """The stored fields of a turn -> what they say; None where there is only a lease."""
    if not fields.get("turn"):
        return None
    start, before = fields.get("start"), fields.get("before")
    return StoredTurn(
        record=TurnRecord.from_bytes(fields["turn"]),
        start=Session.from_bytes(start) if start else None,
        before=Session.from_bytes(before) if before else None,
        finish_reason=(fields.get("end") or b"").decode(),
        is_running=int(fields.get("until") or 0) > now_ms,
    )
