"""What is stored of a session and of its last turn, in which bytes, and what every session store promises.

A turn is one request that is being answered. Only one turn at a time writes a session: it has a token, and every write
is checked against it. A request that takes a turn over sets another token, and from then on the old one cannot write.
A turn stays stored for a while after its end, so that a client that lost its stream can resume it at any character.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from model.checkpoints.names import DEFAULT, is_model_name
from model.errors import StateError
from model.network.sampling import MAX_SEED, SamplingParams
from model.network.state import MAX_POSITION, HiddenState, checked_integer, checked_string
from model.structured_outputs.specification import StructuredOutputs
from service.errors import UnreadableSession

SESSION_ID = "[A-Za-z0-9_-]{22,64}"
MAX_IDEMPOTENCY_KEYS = 32
"""Of the turns of one session: so many are recognised when a request is sent again."""
_LAYOUT, _NAMED_LAYOUT = 3, 4
HEAD_BYTES = 2 + 63
"""The beginning of a stored session, which has its model's name."""
MAX_PENALTY_WINDOW = next(int(p.maximum) for p in SamplingParams.fields() if p.name == "penalty_window")
_HEAD_2 = struct.Struct("<BQI")  # layout, seed, bytes of the state
_HEAD_3 = struct.Struct("<BQIH")  # and bytes of `generated`
_TURN_LAYOUT = 2
MAX_TURN_CHARS = 10**8
"""The longest text of one turn: no setting allows more."""
COMPLETE = ("length", "stop")
"""Finish reasons of a turn whose text is whole. One that was cancelled or timed out could still go on."""
_FINISH_REASONS = ("", *COMPLETE, "cancelled", "timeout")


@dataclass(frozen=True, slots=True)
class RecentText:
    """The end of a session's text, and which of its characters were generated rather than read as a prompt."""

    text: str = ""
    generated: int = 0  # bit i: whether the i-th character from the end was generated

    def read(self, prompt: str) -> RecentText:
        """The recent text after a prompt."""
        return RecentText(self.text + prompt, self.generated << len(prompt))

    def generate(self, text: str) -> RecentText:
        """The recent text after generated text."""
        ones = (1 << len(text)) - 1
        return RecentText(self.text + text, self.generated << len(text) | ones)

    def last(self, count: int) -> RecentText:
        """The last characters; none if count is 0."""
        n_flags = min(count, MAX_PENALTY_WINDOW)
        return RecentText(self.text[-count:] if count else "", self.generated & ((1 << n_flags) - 1))

    def flags(self) -> list[bool]:
        """For each character, whether it was generated."""
        return [bool(self.generated >> i & 1) for i in range(len(self.text) - 1, -1, -1)]


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What is kept of a text between requests."""

    state: HiddenState
    seed: int
    recent_text: str  # the end of the text, which another model re-encodes, and which penalties look at
    generated: int = 0  # which of its characters were generated, see RecentText
    model: str = DEFAULT  # the name of the model that continues it

    @property
    def position(self) -> int:
        """The number of characters of the session's text, prompts included."""
        return self.state.position

    def to_bytes(self) -> bytes:
        """Encode in layout 3: layout, seed and the lengths of the next two, the state, `generated`, the recent text.

        A session of another model than the default one has layout 4: its number, the length of the model's name, the
        name, then what layout 3 is.
        """
        state = self.state.to_bytes()
        generated = self.generated.to_bytes((self.generated.bit_length() + 7) // 8, "little")
        head = _HEAD_3.pack(_LAYOUT, self.seed, len(state), len(generated))
        if self.model != DEFAULT:
            head = bytes([_NAMED_LAYOUT, len(self.model)]) + self.model.encode() + head
        return head + state + generated + self.recent_text.encode()

    @property
    def recent(self) -> RecentText:
        """The recent text with what was generated of it."""
        return RecentText(self.recent_text, self.generated)

    @classmethod
    def from_bytes(cls, data: bytes) -> Session:
        """Decode any layout that was ever written.

        Raises:
            StateError: The bytes are not a whole session of a known layout.
        """
        try:
            read = _READERS[data[0]]
        except LookupError as e:
            raise StateError(f"session: layout {data[:1].hex()!r}, expected one of {sorted(_READERS)}") from e
        try:
            return read(data)
        except (struct.error, ValueError, LookupError, TypeError, RecursionError) as e:
            raise StateError(f"session: {len(data)} bytes that are not a stored session ({e})") from e


def _read_layout_1(data: bytes) -> Session:
    """Layout byte, header length, a JSON header with seed and state_bytes, the state, the recent text."""
    (length,) = struct.unpack_from("<H", data, 1)
    header = json.loads(data[3 : 3 + length])
    end = 3 + length + checked_integer("state_bytes", header["state_bytes"], len(data))
    seed = checked_integer("seed", header["seed"], MAX_SEED)
    return Session(HiddenState.from_bytes(data[3 + length : end]), seed, data[end:].decode())


def _read_layout_2(data: bytes) -> Session:
    _, seed, length = _HEAD_2.unpack_from(data)
    end = _HEAD_2.size + length
    seed = checked_integer("seed", seed, MAX_SEED)
    return Session(HiddenState.from_bytes(data[_HEAD_2.size : end]), seed, data[end:].decode())


def _read_layout_3(data: bytes) -> Session:
    _, seed, state_length, length = _HEAD_3.unpack_from(data)
    begin, end = _HEAD_3.size + state_length, _HEAD_3.size + state_length + length
    if end > len(data):
        raise ValueError(f"{end} bytes are announced")
    state = HiddenState.from_bytes(data[_HEAD_3.size : begin])
    seed, generated = checked_integer("seed", seed, MAX_SEED), int.from_bytes(data[begin:end], "little")
    return Session(state, seed, data[end:].decode(), generated)


def _read_layout_4(data: bytes) -> Session:
    name, rest = model_in_head(data), data[2 + data[1] :]
    if rest[0] != _LAYOUT:
        raise ValueError(f"layout {rest[0]} after the model's name")
    return replace(_read_layout_3(rest), model=name)


def model_in_head(data: bytes) -> str:
    """Return the name of the model of a stored session, from its first HEAD_BYTES.

    Raises:
        StateError: There is none.
    """
    if data[0] != _NAMED_LAYOUT:
        return DEFAULT
    name = data[2 : 2 + data[1]].decode(errors="replace") if len(data) > 1 else ""
    if not is_model_name(name):
        raise StateError(field="model", value=name, expected="the name of a model")
    return name


_READERS: dict[int, Callable[[bytes], Session]] = {
    1: _read_layout_1,
    2: _read_layout_2,
    3: _read_layout_3,
    4: _read_layout_4,
}


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """All that is needed to generate a turn's text again: it is a function of this and of the session's start."""

    start_position: int  # of the session, before the prompt
    prompt: str  # as the model read it: without the characters that were skipped
    max_chars: int
    sampling: SamplingParams
    stop: list[str]
    seed: int
    fingerprint: str  # of the model that generates the text
    numerics: str  # of its stepper
    reencoded: bool = False  # whether the model read the session's recent text instead of continuing its state
    key: str = ""  # a digest of the Idempotency-Key, if the request has one
    request: str = ""  # a digest of the request
    min_chars: int = 0  # no stop string is matched in so many generated characters
    logit_bias: dict[str, float] = field(default_factory=dict)  # character -> what is added to its logit
    structured_outputs: dict[str, Any] = field(default_factory=dict)  # the specification, if there is one
    model: str = DEFAULT  # the name under which the session goes on

    @property
    def prompt_end(self) -> int:
        """The session's position at which the generated text begins."""
        return self.start_position + len(self.prompt)

    def to_bytes(self) -> bytes:
        """Encode in layout 2: JSON of the fields, without the default model's name."""
        fields = {"layout": _TURN_LAYOUT, **asdict(self)}
        if self.model == DEFAULT:
            del fields["model"]
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> TurnRecord:
        """Decode any layout that was ever written.

        Raises:
            StateError: The bytes are not a turn of a known layout, or a value is out of range, or it has a sampling
                parameter that is not known.
        """
        try:
            fields = json.loads(data)
            layout = fields.pop("layout", 1)
            if layout == 1:
                fields = _from_turn_layout_1(fields)
            elif layout != _TURN_LAYOUT:
                raise ValueError(f"layout {layout!r}, expected 1 or {_TURN_LAYOUT}")
            record = cls(**{**fields, "sampling": SamplingParams.from_dict(fields["sampling"])})
            record._check()
            return record
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise StateError(f"turn: {len(data)} bytes that are not a stored turn ({e})") from e

    def _check(self) -> None:
        """Check the types and ranges of what was read back.

        Raises:
            StateError: A value is wrong.
        """
        checked_integer("start_position", self.start_position, MAX_POSITION)
        checked_integer("max_chars", self.max_chars, MAX_TURN_CHARS)
        checked_integer("seed", self.seed, MAX_SEED)
        for name in ("prompt", "fingerprint", "numerics", "key", "request"):
            checked_string(name, getattr(self, name))
        if type(self.stop) is not list or not all(checked_string("stop", stop) for stop in self.stop):
            raise StateError(field="stop", value=self.stop, expected="a list of strings that are not empty")
        checked_integer("min_chars", self.min_chars, MAX_TURN_CHARS)
        if type(self.logit_bias) is not dict or not all(
            len(character) == 1 and type(value) is float and math.isfinite(value)
            for character, value in self.logit_bias.items()
        ):
            raise StateError(field="logit_bias", value=self.logit_bias, expected="finite numbers by character")
        if type(self.structured_outputs) is not dict:
            raise StateError(field="structured_outputs", value=self.structured_outputs, expected="an object")
        if self.structured_outputs:
            StructuredOutputs.from_dict(self.structured_outputs)
        if not is_model_name(checked_string("model", self.model)):
            raise StateError(field="model", value=self.model, expected="the name of a model")
        if type(self.reencoded) is not bool:
            raise StateError(field="reencoded", value=self.reencoded, expected="true or false")


def _from_turn_layout_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters were fields of the record; two fields had other names."""
    renamed = {"start": "start_position", "reprimed": "reencoded"}
    sampling = {name: fields[name] for name in ("temperature", "top_k", "top_p", "min_p")}
    return {**{renamed.get(k, k): v for k, v in fields.items() if k not in sampling}, "sampling": sampling}


@dataclass(frozen=True, slots=True, eq=False)
class StoredTurn:
    """The last turn of a session, with the states from which it can be generated again."""

    record: TurnRecord
    start: Session | None  # before the turn; None for a session that began with it
    previous_save: Session | None  # the one before the session's newest, while the turn runs
    finish_reason: str  # empty while it runs, and for ever if its worker died
    is_running: bool  # whether a request has its lease

    @property
    def is_complete(self) -> bool:
        """Whether its text is whole."""
        return self.finish_reason in COMPLETE

    @property
    def status(self) -> str:
        """The finish reason; without one, "running" or "interrupted"."""
        return self.finish_reason or ("running" if self.is_running else "interrupted")

    @property
    def recent_before(self) -> RecentText:
        """The end of the session's text before the generated text: what was there, and the prompt."""
        return (self.start.recent if self.start else RecentText()).read(self.record.prompt)


@dataclass(frozen=True, slots=True, eq=False)
class LeasedSession:
    """A session that was loaded together with the right to write it."""

    token: str  # goes with every write
    session: Session | None  # None: it is new
    turn: StoredTurn | None  # the last one
    has_key: bool = False  # whether a turn of this session had the request's Idempotency-Key


def new_token() -> str:
    """Return a random token for the lease of a session."""
    return secrets.token_hex(8)


def new_session_id() -> str:
    """Return a random id of 192 bits. It is a capability: who knows it can read and continue the session."""
    return secrets.token_urlsafe(24)


def digest(*parts: str) -> str:
    """Return the 128 bits, in hex, that stand for a secret in the store: reading the store reveals no session id."""
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class SessionStore(Protocol):
    """Sessions and their last turns. Both expire after a time without use.

    Every method may raise StoreUnavailable. A write with a token that is no longer the session's raises
    SessionConflict; a write to a session that no longer exists (deleted, or the store lost its memory) returns False.
    """

    def load(self, session_id: str) -> tuple[Session | None, StoredTurn | None]:
        """Return a session as it was last saved, and its last turn; the session's time to live starts anew.

        A session whose first turn has not been saved yet is (None, turn), one that does not exist (None, None).

        Raises:
            UnreadableSession: It was stored in an unknown layout.
        """
        ...

    def model_of(self, session_id: str) -> str | None:
        """Return the name of the model that continues a session; None if the session does not exist.

        Raises:
            UnreadableSession: What is stored is damaged.
        """
        ...

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
        """Take the lease of a session, and load it.

        Args:
            session_id: The session.
            lease_s: The lease ends after this time without a renewal.
            is_new: Whether the session may be one that does not exist.
            force: Take the lease from its holder.
            key: The digest of an Idempotency-Key; the turn with this key gives its lease away.
            request: The digest of the request that has the key.

        Raises:
            UnknownSession: It does not exist.
            SessionConflict: Another request holds the lease.
            KeyReused: The turn with this key is of another request; nothing changed.
            UnreadableSession: It was stored in an unknown layout.
        """
        ...

    def begin(self, session_id: str, token: str, turn: TurnRecord, start: Session | None, lease_s: float) -> bool:
        """Store the turn that begins, in place of the last one, and set the session to where it starts."""
        ...

    def create_turn(self, session_id: str, token: str, turn: TurnRecord, lease_s: float) -> None:
        """Store the turn that begins a session with a new id, and give its lease to the token.

        Nobody else has a random id, so there is nothing to be loaded and nobody to wait for: `acquire` is not needed.
        """
        ...

    def renew(self, session_id: str, token: str, lease_s: float) -> bool:
        """Prolong the lease."""
        ...

    def save(self, session_id: str, token: str, session: Session, lease_s: float) -> bool:
        """Store a snapshot of the running turn, and prolong the lease."""
        ...

    def commit(self, session_id: str, token: str, session: Session, finish_reason: str) -> bool:
        """Store the end of the turn, and release the lease. Repeating it with the same token changes nothing."""
        ...

    def abandon(self, session_id: str, token: str) -> None:
        """Release the lease without storing anything; no effect if the lease was lost."""
        ...

    def discard(self, session_id: str, token: str) -> None:
        """Forget the turn and its Idempotency-Key, and release the lease; no effect if the lease was lost.

        The session stays where the turn began; one that began with this turn is gone.
        """
        ...

    def create(self, session_id: str, session: Session) -> None:
        """Store a session without a turn, such as a fork."""
        ...

    def delete(self, session_id: str) -> bool:
        """Delete a session and its turn; return whether it existed."""
        ...

    def idempotency_salt(self, key: str) -> str:
        """Return the random value that belongs to the digest of an Idempotency-Key; the first call creates it."""
        ...

    def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        ...


LEASE_HELD = "another request writes this session; send the request again when it has ended, or resume its stream"
LEASE_LOST = "another request has taken this session over"


TURN_FIELDS = ("turn", "start", "before", "end", "until")
"""The fields in which a store keeps a turn: TurnRecord, the sessions `start` and `previous_save`, the finish reason,
and the end of the lease in milliseconds of the store's clock."""


def decode_stored(
    data: bytes | None, fields: Mapping[str, Any], now_ms: int
) -> tuple[Session | None, StoredTurn | None]:
    """Decode what is stored of a session: (None, None) if nothing is.

    Args:
        data: The session.
        fields: The TURN_FIELDS of its last turn; without the field `turn` there is only a lease.
        now_ms: The store's clock.

    Raises:
        UnreadableSession: The bytes have an unknown layout, or are damaged.
    """
    try:
        session, turn = _decode_session(data), _decode_turn(fields, now_ms)
        if turn is not None:
            _check_positions(session, turn)
    except (StateError, ValueError) as e:
        raise UnreadableSession(f"what is stored of the session cannot be used: {e}; delete the session") from e
    return session, turn


def decode_model(head: bytes | None, turn: bytes | None) -> str | None:
    """Return the name of the model that continues a session; None where nothing is stored.

    Args:
        head: The first HEAD_BYTES of what is stored of it, if anything is.
        turn: Its last turn, if there is no session yet.

    Raises:
        UnreadableSession: The bytes are damaged.
    """
    try:
        if head:
            return model_in_head(head)
        return TurnRecord.from_bytes(turn).model if turn else None
    except StateError as e:
        raise UnreadableSession(f"what is stored of the session cannot be used: {e}; delete the session") from e


def _decode_session(data: bytes | None) -> Session | None:
    return Session.from_bytes(data) if data else None


def _decode_turn(fields: Mapping[str, Any], now_ms: int) -> StoredTurn | None:
    if not fields.get("turn"):
        return None
    finish_reason = (fields.get("end") or b"").decode()
    if finish_reason not in _FINISH_REASONS:
        expected = f"one of {', '.join(_FINISH_REASONS[1:])}"
        raise StateError(field="finish_reason", value=finish_reason, expected=expected)
    return StoredTurn(
        record=TurnRecord.from_bytes(fields["turn"]),
        start=_decode_session(fields.get("start")),
        previous_save=_decode_session(fields.get("before")),
        finish_reason=finish_reason,
        is_running=int(fields.get("until") or 0) > now_ms,
    )


def _check_positions(session: Session | None, turn: StoredTurn) -> None:
    """Check that the sessions that are stored with a turn are where this turn could have left them.

    Raises:
        StateError: One is not.
    """
    record = turn.record
    start_position = turn.start.position if turn.start is not None else 0
    if start_position != record.start_position:
        raise StateError(field="start_position", value=record.start_position, expected=f"{start_position}")
    low = record.prompt_end if turn.is_complete else record.start_position
    high = record.prompt_end + record.max_chars
    for save in (session, turn.previous_save):
        if save is not None and not low <= save.position <= high:
            raise StateError(field="position", value=save.position, expected=f"{low} to {high}, as its last turn is")
