"""The use case: open a turn on a new or a stored session, take one over, fork.

It knows no HTTP. Every error that has a status code is raised here, before anything is sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from model.errors import StateError
from model.network.state import HiddenState
from service.engine.sequence import SequenceRequest
from service.errors import (
    BadRequest,
    ModelChanged,
    NoTurn,
    SessionConflict,
    StoreUnavailable,
    TurnInterrupted,
    UnknownSession,
)
from service.generation import replay
from service.generation.plan import checked, seed_of
from service.generation.turn import Lease, Turn
from service.models.manager import LoadedModel, ModelManager
from service.schemas import GenerateRequest
from service.store.prefixes import PrefixStore, prefix_keys
from service.store.sessions import (
    NO_SESSION,
    LeasedSession,
    Session,
    SessionStore,
    StoredTurn,
    TurnRecord,
    digest,
    new_session_id,
)

_WHOLE = ("length", "stop")  # a turn that ended so is written; one that was left or ran out of time can be gone on with


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's choices."""

    max_chars: int
    lease_s: float
    snapshot_every_s: float
    recent_text_chars: int


class Generation:
    """Opens turns."""

    def __init__(self, serving: ModelManager, sessions: SessionStore, prefixes: PrefixStore, policy: Policy) -> None:
        self._serving = serving
        self._sessions = sessions
        self._prefixes = prefixes
        self._policy = policy

    def open(self, request: GenerateRequest, key: str = "") -> Turn:
        """Begin to answer a request; with an Idempotency-Key that was used before, answer that turn again.

        Raised: BadRequest, UnknownSession, SessionConflict and its kinds, StoreUnavailable, Overloaded, NoModel, Draining.
        """
        model = self._serving.admit()
        asked = checked(model, request, self._policy.max_chars)
        model.engine.check_capacity()
        if request.logprobs:
            model.reader.open()
        session_id, held = self._acquire(request.session_id, key and digest(key))
        lease = self._lease(session_id, held) if held is not None else None
        try:
            if held is not None and held.last is not None and key and held.last.record.key == digest(key):
                if held.last.record.request != digest(request.model_dump_json()):
                    raise SessionConflict("this Idempotency-Key was used for another request")
                return self._take_over(model, session_id, held, None, request.logprobs)
            if held is not None and (held.knows_key or (key and not request.session_id and held.session is not None)):
                raise SessionConflict(
                    "this Idempotency-Key was used before, for a turn that is not remembered any more"
                )
            session = self._where(model, request, held)
            asked = replace(asked, key=key and digest(key), seed=seed_of(request, session, held))
            return self._begin(model, request, asked, session, lease)
        except BaseException:
            if lease is not None:
                lease.abandon()
            raise

    def resume(self, session_id: str, after: int | None, logprobs: int | None = None) -> Turn:
        """Go on with a session's last turn after this position, wherever it was written until now.

        Raised: UnknownSession, NoTurn, BadRequest for a position outside the turn, ModelChanged, StoreUnavailable, Overloaded.
        """
        model = self._serving.admit()
        model.engine.check_capacity()
        if logprobs:
            model.reader.open()
        session, last = self._sessions.load(session_id)
        if last is not None and session is not None and last.finish_reason in _WHOLE:
            return self._again(model, session_id, last, session, after, logprobs)
        held = self._sessions.acquire(session_id, lease_s=self._policy.lease_s, force=True)
        try:
            if held.last is None:
                raise NoTurn("this session remembers no turn that could be gone on with")
            return self._take_over(model, session_id, held, after, logprobs)
        except BaseException:
            self._lease(session_id, held).abandon()
            raise

    def fork(self, session_id: str, position: int | None, seed: int | None) -> tuple[str, Session]:
        """A new session that holds what this one holds, or held at a position; the id, and the session.

        Raised: UnknownSession, SessionConflict for a position that cannot be reached, StoreUnavailable, Overloaded.
        """
        session, last = self._sessions.load(session_id)
        if session is None and last is None:
            raise UnknownSession(NO_SESSION)
        if position is not None:
            session = replay.rewound(self._serving.admit(), last, session, position, self._policy.recent_text_chars)
        if session is None:
            raise BadRequest("position", position, "a position in the session's first turn, which is not saved yet")
        new_id = new_session_id()
        session = Session(session.state, session.seed if seed is None else seed, session.recent_text)
        self._sessions.create(new_id, session)
        return new_id, session

    def _acquire(self, session_id: str | None, key: str) -> tuple[str | None, LeasedSession | None]:
        lease_s = self._policy.lease_s
        if session_id is not None:
            return session_id, self._sessions.acquire(session_id, lease_s=lease_s, key=key)
        try:
            session_id = digest_id(key, self._sessions.salt_of(key)) if key else new_session_id()
            return session_id, self._sessions.acquire(session_id, lease_s=lease_s, is_new=True, key=key)
        except StoreUnavailable:
            if key:
                raise  # without the store nobody can say whether this turn was written before
            return None, None  # the text can still be written; it just cannot be gone on with

    def _lease(self, session_id: str | None, held: LeasedSession) -> Lease:
        assert session_id is not None
        return Lease(self._sessions, session_id, held.token, self._policy.lease_s)

    def _where(self, model: LoadedModel, request: GenerateRequest, held: LeasedSession | None) -> Session | None:
        """The session to go on from."""
        if held is None:
            return None
        if request.position is not None:
            session = replay.rewound(model, held.last, held.session, request.position, self._policy.recent_text_chars)
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
            if not session.recent_text and session.position:
                raise ModelChanged("another model is served now, and no text of this session is kept to read anew")
        return session

    def _begin(
        self,
        model: LoadedModel,
        request: GenerateRequest,
        asked: TurnRecord,
        session: Session | None,
        lease: Lease | None,
    ) -> Turn:
        reencoded = session is not None and not replay.is_of(model, session)
        record = replace(asked, start=session.position if session else 0, reencoded=reencoded)
        sequence = replay.from_start(model, record, session)
        if session is None:
            sequence = self._reuse(model, sequence)
        if request.timeout_s is not None:
            sequence = replace(sequence, deadline=time.monotonic() + request.timeout_s)
        recent_text = (session.recent_text if session else "") + record.prompt
        turn = self._turn(model, record, session, sequence, lease, recent_text, record.first)
        turn.reused_chars = sequence.reused_chars
        turn.look(request.logprobs)
        turn.submit()
        try:
            if lease is not None:
                lease.is_there = lease.sessions.begin(lease.session_id, lease.token, record, session, lease.lease_s)
        except StoreUnavailable:
            if request.session_id is not None:
                turn.cancel()
                raise
            turn.lease = None
        return turn

    def _take_over(
        self, model: LoadedModel, session_id: str | None, held: LeasedSession, after: int | None, logprobs: int | None
    ) -> Turn:
        """Go on with the turn of a session whose lease is ours."""
        last, session = held.last, held.session
        assert last is not None
        lease = self._lease(session_id, held)
        if session is not None and session_id is not None and last.finish_reason in _WHOLE:
            lease.abandon()
            return self._again(model, session_id, last, session, after, logprobs)
        after = _within(last.record, after, last.record.first + last.record.max_chars)
        turn = self._replay(model, last, session, lease, after)
        turn.kept = session
        return _submitted(turn, logprobs)

    def _again(
        self,
        model: LoadedModel,
        session_id: str,
        last: StoredTurn,
        session: Session,
        after: int | None,
        logprobs: int | None,
    ) -> Turn:
        """A turn that has been written to its end, once more: whoever reads it, and leaves, the session stays."""
        turn = self._replay(model, last, session, None, _within(last.record, after, session.position))
        turn.ended_in = session_id
        return _submitted(turn, logprobs)

    def _replay(
        self, model: LoadedModel, last: StoredTurn, session: Session | None, lease: Lease | None, after: int
    ) -> Turn:
        sequence, recent_text = replay.from_nearest(model, last, session, after)
        return self._turn(model, last.record, last.start, sequence, lease, recent_text, after)

    def _turn(
        self,
        model: LoadedModel,
        record: TurnRecord,
        start: Session | None,
        sequence: SequenceRequest,
        lease: Lease | None,
        recent_text: str,
        show_from: int,
    ) -> Turn:
        if lease is not None:
            sequence = replace(sequence, snapshot_every_s=self._policy.snapshot_every_s)
        return Turn(
            sequence,
            record,
            start,
            model,
            lease,
            recent_text,
            self._policy.recent_text_chars,
            show_from,
            self._prefixes,
        )

    def _reuse(self, model: LoadedModel, sequence: SequenceRequest) -> SequenceRequest:
        """Begin a new text at the longest of its prefixes that is known, and ask for the states of the others."""
        ids = sequence.feed[1:]
        keys = prefix_keys(model.fingerprint, model.engine.numerics, ids)
        if not keys:
            return sequence
        keys.reverse()
        found = self._prefixes.first([key for _, key in keys])
        if found is not None:
            try:
                state = HiddenState.from_bytes(found[1])
            except StateError:
                return sequence
            reused = keys[found[0]][0]
            sequence = replace(
                sequence,
                feed=sequence.feed[reused:],
                start_position=reused,
                state=state.values,
                reused_chars=reused,
            )
            keys = keys[: found[0]]
        return replace(sequence, captures=dict(keys))


def digest_id(key: str, salt: str) -> str:
    """The id of the session that a request with this Idempotency-Key opens: always the same, known to nobody else."""
    return digest("session", key, salt) + digest("again", key, salt)[:16]


def _submitted(turn: Turn, logprobs: int | None) -> Turn:
    turn.look(logprobs)
    turn.submit()
    return turn


def _within(record: TurnRecord, after: int | None, highest: int) -> int:
    """The position to go on after. Raised: BadRequest."""
    after = record.first if after is None else max(after, record.first)
    if after > highest:
        raise BadRequest("Last-Event-ID", after, f"a position from {record.first} to {highest}")
    return after
