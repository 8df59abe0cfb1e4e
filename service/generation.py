"""The use case: open a turn on a new or a stored session, take one over, fork.

It knows no HTTP. Every error that has a status code is raised here, before anything is sent.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

import numpy as np

from model.errors import StateError, UnknownCharacters
from model.state import HiddenState
from service import replay
from service.engine.sequence import Sequence
from service.errors import BadRequest, ModelChanged, NoTurn, SessionConflict, StoreAway, TurnInterrupted, UnknownSession
from service.schemas import GenerateRequest
from service.serving import Served, Serving
from service.store.prefixes import PrefixStore, prefix_keys
from service.store.sessions import NO_SESSION, Held, Session, SessionStore, TurnRecord, digest, new_session_id
from service.turn import Lease, Turn


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's choices."""

    max_chars: int
    lease_s: float
    snapshot_every_s: float
    tail_chars: int


class Generation:
    """Opens turns."""

    def __init__(self, serving: Serving, sessions: SessionStore, prefixes: PrefixStore, policy: Policy) -> None:
        self._serving = serving
        self._sessions = sessions
        self._prefixes = prefixes
        self._policy = policy

    def open(self, request: GenerateRequest, key: str = "") -> Turn:
        """Begin to answer a request; with an Idempotency-Key that was used before, answer that turn again.

        Raised: BadRequest, UnknownSession, SessionConflict and its kinds, StoreAway, Overloaded, NoModel, Draining.
        """
        model = self._serving.admit()
        asked = _checked(model, request, self._policy.max_chars)
        model.engine.refuse_if_full()
        if request.logprobs:
            model.reader.open()
        session_id, held = self._acquire(request.session_id, key and digest(key))
        lease = self._lease(session_id, held) if held is not None else None
        try:
            if held is not None and held.last is not None and key and held.last.record.key == digest(key):
                if held.last.record.request != digest(request.model_dump_json()):
                    raise SessionConflict("this Idempotency-Key was used for another request")
                return self._take_over(model, lease, held, held.last.record.first, request.logprobs)
            if held is not None and (held.knows_key or (key and not request.session_id and held.session is not None)):
                raise SessionConflict(
                    "this Idempotency-Key was used before, for a turn that is not remembered any more"
                )
            session = self._where(model, request, held)
            asked = replace(asked, key=key and digest(key), seed=_seed(request, session, held))
            return self._begin(model, request, asked, session, lease)
        except BaseException:
            if lease is not None:
                lease.abandon()
            raise

    def resume(self, session_id: str, after: int | None, logprobs: int | None = None) -> Turn:
        """Go on with a session's last turn after this position, wherever it was written until now.

        Raised: UnknownSession, NoTurn, BadRequest for a position outside the turn, ModelChanged, StoreAway, Overloaded.
        """
        model = self._serving.admit()
        model.engine.refuse_if_full()
        if logprobs:
            model.reader.open()
        held = self._sessions.acquire(session_id, lease_s=self._policy.lease_s, force=True)
        lease = self._lease(session_id, held)
        try:
            last = held.last
            if last is None:
                raise NoTurn("this session remembers no turn that could be gone on with")
            record = last.record
            after = record.first if after is None else max(after, record.first)
            ended = last.finish_reason in ("length", "stop") and held.session is not None
            highest = held.session.position if ended and held.session else record.first + record.max_chars
            if after > highest:
                raise BadRequest(
                    f"Last-Event-ID: got {after}, expected a position from {record.first} to {highest}",
                    field="Last-Event-ID", value=after, expected=f"{record.first} to {highest}",
                )  # fmt: skip
            return self._take_over(model, lease, held, after, logprobs)
        except BaseException:
            lease.abandon()
            raise

    def fork(self, session_id: str, position: int | None, seed: int | None) -> tuple[str, Session]:
        """A new session that holds what this one holds, or held at a position; the id, and the session.

        Raised: UnknownSession, SessionConflict for a position that cannot be reached, StoreAway, Overloaded.
        """
        session, last = self._sessions.load(session_id)
        if session is None and last is None:
            raise UnknownSession(NO_SESSION)
        if position is not None:
            session = replay.rewound(self._serving.admit(), last, session, position, self._policy.tail_chars)
        if session is None:
            raise BadRequest(
                "position: this session has not been saved yet; expected a position in its first turn",
                field="position", value=position, expected="a position in its first turn",
            )  # fmt: skip
        new_id = new_session_id()
        session = Session(session.state, session.seed if seed is None else seed, session.tail)
        self._sessions.create(new_id, session)
        return new_id, session

    def _acquire(self, session_id: str | None, key: str) -> tuple[str | None, Held | None]:
        lease_s = self._policy.lease_s
        if session_id is not None:
            return session_id, self._sessions.acquire(session_id, lease_s=lease_s, key=key)
        try:
            session_id = digest_id(key, self._sessions.salt_of(key)) if key else new_session_id()
            return session_id, self._sessions.acquire(session_id, lease_s=lease_s, is_new=True, key=key)
        except StoreAway:
            if key:
                raise  # without the store nobody can say whether this turn was written before
            return None, None  # the text can still be written; it just cannot be gone on with

    def _lease(self, session_id: str | None, held: Held) -> Lease:
        assert session_id is not None
        return Lease(self._sessions, session_id, held.token, self._policy.lease_s)

    def _where(self, model: Served, request: GenerateRequest, held: Held | None) -> Session | None:
        """The session to go on from."""
        if held is None:
            return None
        if request.position is not None:
            session = replay.rewound(model, held.last, held.session, request.position, self._policy.tail_chars)
        elif held.last is not None and not held.last.finish_reason:
            at = held.session.position if held.session else 0
            raise TurnInterrupted(
                "the last turn was interrupted: go on with it (GET /sessions/{id}/stream), or say with `position` how "
                "much of the text you have",
                position=at,
            )
        else:
            session = held.session
            if session is None and request.session_id is not None:
                raise UnknownSession(NO_SESSION)
        if session is not None and not replay.is_of(model, session):
            if request.on_new_model == "conflict":
                raise ModelChanged("this session was written by another model", position=session.position)
            if not session.tail and session.position:
                raise ModelChanged("another model is served now, and no text of this session is kept to read anew")
        return session

    def _begin(
        self, model: Served, request: GenerateRequest, asked: TurnRecord, session: Session | None, lease: Lease | None
    ) -> Turn:
        reprimed = session is not None and not replay.is_of(model, session)
        record = replace(asked, start=session.position if session else 0, reprimed=reprimed)
        sequence = replay.from_start(model, record, session)
        reused = self._reuse(model, sequence) if session is None else 0
        if request.timeout_s is not None:
            sequence.deadline = time.monotonic() + request.timeout_s
        tail = (session.tail if session else "") + record.prompt
        turn = self._turn(model, record, session, sequence, lease, tail, record.first)
        turn.reused_chars = reused
        turn.look(request.logprobs)
        model.engine.submit(sequence)
        try:
            if lease is not None:
                lease.is_there = lease.sessions.begin(lease.session_id, lease.token, record, session, lease.lease_s)
        except StoreAway:
            if request.session_id is not None:
                sequence.stream.close()
                raise
            turn.lease = None
        return turn

    def _take_over(self, model: Served, lease: Lease | None, held: Held, after: int, logprobs: int | None) -> Turn:
        assert held.last is not None
        sequence, tail = replay.from_nearest(model, held.last, held.session, after)
        turn = self._turn(model, held.last.record, held.last.start, sequence, lease, tail, after)
        turn.look(logprobs)
        model.engine.submit(sequence)
        return turn

    def _turn(
        self,
        model: Served,
        record: TurnRecord,
        start: Session | None,
        sequence: Sequence,
        lease: Lease | None,
        tail: str,
        show_from: int,
    ) -> Turn:
        if lease is not None:
            sequence.snapshot_every_s = self._policy.snapshot_every_s
        return Turn(sequence, record, start, model, lease, tail, self._policy.tail_chars, show_from, self._prefixes)

    def _reuse(self, model: Served, sequence: Sequence) -> int:
        """Begin a new text at the longest of its prefixes that is known, and ask for the states of the others."""
        ids = sequence.to_feed[1:]
        keys = prefix_keys(model.fingerprint, model.engine.numerics, ids)
        if not keys:
            return 0
        keys.reverse()
        found = self._prefixes.first([key for _, key in keys])
        reused = 0
        if found is not None:
            try:
                state = HiddenState.from_bytes(found[1])
            except StateError:
                return 0
            reused = keys[found[0]][0]
            sequence.to_feed = sequence.to_feed[reused:]
            sequence.position, sequence.values, sequence.reused = reused, state.values, reused
            keys = keys[: found[0]]
        sequence.marks = dict(reversed(keys))
        return reused


def digest_id(key: str, salt: str) -> str:
    """The id of the session that a request with this Idempotency-Key opens: always the same, known to nobody else."""
    return digest("session", key, salt) + digest("again", key, salt)[:16]


def _seed(request: GenerateRequest, session: Session | None, held: Held | None) -> int:
    """The one asked for, else the session's, else one drawn here."""
    if request.seed is not None:
        return request.seed
    if session is not None:
        return session.seed
    return held.last.record.seed if held is not None and held.last is not None else secrets.randbits(53)


def _checked(model: Served, request: GenerateRequest, max_chars: int) -> TurnRecord:
    """The turn that is asked for, its start and seed still open. Raised: BadRequest."""
    if request.max_chars > max_chars:
        raise BadRequest(
            f"max_chars: got {request.max_chars}, expected at most {max_chars}",
            field="max_chars", value=request.max_chars, expected=f"0 to {max_chars}",
        )  # fmt: skip
    if request.position is not None and request.session_id is None:
        raise BadRequest(
            "position: got it without a session_id, expected both: it says where to go on in a session",
            field="position", value=request.position, expected="only with a session_id",
        )  # fmt: skip
    prompt = encode(model, "prompt", request.prompt, request.on_unknown == "skip")
    return TurnRecord(
        start=0,
        prompt=request.prompt if len(prompt) == len(request.prompt) else model.engine.vocab.decode(prompt),
        max_chars=request.max_chars,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        stop=_spellable(model, request),
        seed=0,
        fingerprint=model.fingerprint,
        numerics=model.engine.numerics,
        request=digest(request.model_dump_json()),
    )


def encode(model: Served, name: str, text: str, skip: bool) -> np.ndarray:
    try:
        return model.engine.vocab.encode(text, "skip" if skip else "error")
    except UnknownCharacters as e:
        raise BadRequest(
            f"{name}: {e}; expected characters that it has, or on_unknown = 'skip'",
            field=name, value=[{"position": i, "character": c} for i, c in e.unknown[:32]],
            expected="characters of the model's vocabulary",
        ) from e  # fmt: skip


def _spellable(model: Served, request: GenerateRequest) -> list[str]:
    """The stop strings that the model could write at all."""
    spellable = []
    for i, stop in enumerate(request.stop):
        try:
            encode(model, f"stop.{i}", stop, skip=False)
            spellable.append(stop)
        except BadRequest:
            if request.on_unknown == "error":
                raise
    return spellable
