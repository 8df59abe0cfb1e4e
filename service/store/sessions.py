"""A stored session, and what every store of them promises.

Only one request writes a session at a time: it holds a lease, a token that `begin` sets and every write is checked
against. A lease that ran out, or was deleted under its holder, makes the holder's writes fail; nothing is ever
half-written.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import struct
from dataclasses import dataclass
from typing import Protocol

from model.errors import StateError
from model.state import HiddenState

TAIL_CHARS = 1024
SESSION_ID = "[A-Za-z0-9_-]{22,64}"
_LAYOUT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What is kept of a text between requests."""

    state: HiddenState
    seed: int
    tail: str  # the last TAIL_CHARS of its text, for a model that must read it anew

    def to_bytes(self) -> bytes:
        """Layout byte, header length, JSON header, state, tail in UTF-8."""
        state, tail = self.state.to_bytes(), self.tail.encode()
        header = json.dumps({"seed": self.seed, "state_bytes": len(state)}, separators=(",", ":")).encode()
        return struct.pack("<BH", _LAYOUT, len(header)) + header + state + tail

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """Raised: StateError when the bytes are not a whole session of a layout that is known."""
        try:
            layout, length = struct.unpack_from("<BH", data)
            if layout != _LAYOUT:
                raise StateError(f"session: layout {layout}, expected {_LAYOUT}")
            header = json.loads(data[3 : 3 + length])
            end = 3 + length + int(header["state_bytes"])
            return cls(HiddenState.from_bytes(data[3 + length : end]), int(header["seed"]), data[end:].decode())
        except (struct.error, ValueError, KeyError, TypeError) as e:
            raise StateError(f"session: {len(data)} bytes that are not a stored session ({e})") from e


def new_session_id() -> str:
    """A capability of 192 bits: who knows it may read and go on with the session."""
    return secrets.token_urlsafe(24)


def key_of(session_id: str) -> str:
    """The key under which a session is stored: a digest, so that a look at the store gives nobody a session."""
    return hashlib.blake2b(session_id.encode(), digest_size=16).hexdigest()


class SessionStore(Protocol):
    """Every method may raise StoreAway; what else each raises is said there."""

    def load(self, session_id: str) -> Session | None:
        """A session as it was last committed, or None; its time to live starts anew."""
        ...

    def begin(self, session_id: str, *, is_new: bool, lease_s: float) -> tuple[str, Session | None]:
        """Take the lease: the token for it, and the session, None if it is new.

        Raised: UnknownSession, SessionConflict while another holds the lease.
        """
        ...

    def renew(self, session_id: str, token: str, lease_s: float) -> None:
        """Keep a lease that takes longer. Raised: SessionConflict when it was lost."""
        ...

    def commit(self, session_id: str, token: str, session: Session) -> None:
        """Store the session and give the lease back. Raised: SessionConflict when the lease was lost."""
        ...

    def abandon(self, session_id: str, token: str) -> None:
        """Give the lease back with nothing stored; nothing happens when it was lost."""
        ...

    def delete(self, session_id: str) -> bool:
        """Forget all of a session, lease included; whether there was one."""
        ...

    def ping(self) -> None:
        """Raise StoreAway unless the store answers."""
        ...
