"""The use case: open a session, submit its text, hand out what is written, commit what was shown.

It knows no HTTP: every error that has a status code is raised by `open`, before anything is sent.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.errors import UnknownCharacters
from service.engine.sequence import Sequence
from service.engine.stops import StopScanner
from service.engine.stream import End, Failed, FinishReason, Piece
from service.errors import BadRequest, ServiceError, SessionConflict, StoreAway
from service.schemas import GenerateRequest
from service.serving import Served, Serving
from service.store.sessions import TAIL_CHARS, Session, SessionStore, new_session_id

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """How a turn ended: the body of a JSON answer, less its text, and the data of a stream's last event."""

    finish_reason: FinishReason
    session_id: str | None
    position: int
    seed: int
    model: Served
    prompt_chars: int
    generated_chars: int
    saved: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "finish_reason": self.finish_reason,
            "session_id": self.session_id,
            "position": self.position,
            "seed": self.seed,
            "model": self.model.as_dict(),
            "usage": {
                "prompt_chars": self.prompt_chars,
                "generated_chars": self.generated_chars,
                "reused_chars": 0,
            },
            "saved": self.saved,
        }


class Generation:
    """Opens turns."""

    def __init__(self, serving: Serving, sessions: SessionStore, *, max_chars: int, lease_s: float) -> None:
        self._serving = serving
        self._sessions = sessions
        self._max_chars = max_chars
        self._lease_s = lease_s

    def open(self, request: GenerateRequest) -> Turn:
        """Begin to answer a request. Raised: BadRequest, UnknownSession, SessionConflict, StoreAway, Overloaded."""
        if request.max_chars > self._max_chars:
            raise BadRequest(
                f"max_chars: got {request.max_chars}, expected at most {self._max_chars}",
                field="max_chars", value=request.max_chars, expected=f"0 to {self._max_chars}",
            )  # fmt: skip
        model = self._serving.current
        prompt = _encode(model, "prompt", request.prompt, request.on_unknown == "skip")
        stops = _spellable(model, request)
        session_id, token, session = self._begin(request.session_id)
        try:
            return self._submit(model, request, prompt, stops, session_id, token, session)
        except BaseException:
            if token is not None and session_id is not None:
                _give_back(self._sessions, session_id, token)
            raise

    def _begin(self, session_id: str | None) -> tuple[str | None, str | None, Session | None]:
        if session_id is not None:
            token, session = self._sessions.begin(session_id, is_new=False, lease_s=self._lease_s)
            return session_id, token, session
        try:
            session_id = new_session_id()
            return session_id, self._sessions.begin(session_id, is_new=True, lease_s=self._lease_s)[0], None
        except StoreAway:  # the text can still be written; it just cannot be gone on with
            return None, None, None

    def _submit(
        self,
        model: Served,
        request: GenerateRequest,
        prompt: np.ndarray,
        stops: list[str],
        session_id: str | None,
        token: str | None,
        session: Session | None,
    ) -> Turn:
        state = session.state if session is not None else None
        if state is not None and not state.fits(model.fingerprint, model.engine.numerics):
            raise SessionConflict(
                "this session was written by another model", position=state.position, model=state.fingerprint
            )
        seed = request.seed if request.seed is not None else session.seed if session else secrets.randbits(53)
        pending = state.pending if state is not None else model.engine.vocab.start
        sequence = Sequence(
            to_feed=np.concatenate([[pending], prompt]).astype(np.int32),
            position=state.position if state is not None else 0,
            remaining=request.max_chars,
            params=request.sampling,
            seed=seed,
            values=state.values if state is not None else None,
            stops=StopScanner(stops),
        )
        turn = Turn(
            sequence=sequence,
            model=model,
            sessions=self._sessions,
            session_id=session_id,
            token=token,
            lease_s=self._lease_s,
            tail=(session.tail if session else "") + model.engine.vocab.decode(prompt),
            prompt_chars=len(prompt),
        )
        model.engine.submit(sequence)
        return turn


@dataclass(slots=True, eq=False)
class Turn:
    """One request that is being answered: iterate over `pieces`, then `finish`; `close` at any time, and again."""

    sequence: Sequence
    model: Served
    sessions: SessionStore
    session_id: str | None
    token: str | None
    lease_s: float
    tail: str
    prompt_chars: int
    start: int = field(init=False)  # the session's position before this turn
    generated_chars: int = field(init=False, default=0)
    _end: End | None = field(init=False, default=None)
    _renew_at: float = field(init=False, default=0.0)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.start = self.sequence.position
        self._renew_at = time.monotonic() + self.lease_s / 3

    def opening(self) -> dict[str, Any]:
        """What is known before anything is written."""
        return {
            "session_id": self.session_id,
            "position": self.start,
            "seed": self.sequence.seed,
            "model": self.model.as_dict(),
        }

    def pieces(self, patience_s: float) -> Iterator[Piece | None]:
        """What is written, block by block; None each time nothing came for patience_s.

        Raised: SessionConflict when the session was lost meanwhile, ServiceError when the text cannot go on.
        """
        while self._end is None:
            item = self.sequence.stream.get(patience_s)
            self._keep_lease()
            if isinstance(item, Piece):
                self.generated_chars += len(item.text)
                self.tail = (self.tail + item.text)[-TAIL_CHARS:]
                yield item
            elif isinstance(item, End):
                self._end = item
            elif isinstance(item, Failed):
                self._closed = True
                self._release()
                if isinstance(item.error, ServiceError):
                    raise item.error
                raise ServiceError("an error on our side; it has been logged") from item.error
            else:
                yield None

    def finish(self) -> Finished:
        """Commit what was shown. Raised: SessionConflict when someone else has taken the session."""
        end = self._end
        assert end is not None, "finish follows the last piece"
        self._closed = True
        saved = self._commit(end)
        return Finished(
            finish_reason=end.finish_reason,
            session_id=self.session_id,
            position=end.state.position if end.state is not None else self.start,
            seed=self.sequence.seed,
            model=self.model,
            prompt_chars=self.prompt_chars,
            generated_chars=self.generated_chars,
            saved=saved,
        )

    def close(self) -> None:
        """The reader is gone: stop writing, and keep the session at what was written until then."""
        if self._closed:
            return
        self._closed = True
        self.sequence.stream.close()
        try:
            for _ in self.pieces(patience_s=5.0):
                pass
            if self._end is not None:
                self._commit(self._end)
        except ServiceError as e:
            log.info("a reader left and its session could not be kept: %s", e.code)

    def _commit(self, end: End) -> bool:
        if self.session_id is None or self.token is None:
            return False
        try:
            if end.state is None:
                self.sessions.abandon(self.session_id, self.token)
                return False
            self.sessions.commit(
                self.session_id, self.token, Session(end.state, self.sequence.seed, self.tail[-TAIL_CHARS:])
            )
            return True
        except StoreAway:
            return False

    def _keep_lease(self) -> None:
        now = time.monotonic()
        if self.session_id is None or self.token is None or now < self._renew_at:
            return
        self._renew_at = now + self.lease_s / 3
        with contextlib.suppress(StoreAway):  # the text goes on; whether it can be saved shows at its end
            self.sessions.renew(self.session_id, self.token, self.lease_s)

    def _release(self) -> None:
        if self.session_id is not None and self.token is not None:
            _give_back(self.sessions, self.session_id, self.token)


def _give_back(sessions: SessionStore, session_id: str, token: str) -> None:
    try:
        sessions.abandon(session_id, token)
    except StoreAway:
        log.info("a lease could not be given back; it runs out by itself")


def _encode(model: Served, name: str, text: str, skip: bool) -> np.ndarray:
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
            _encode(model, f"stop.{i}", stop, skip=False)
            spellable.append(stop)
        except BadRequest:
            if request.on_unknown == "error":
                raise
    return spellable
