"""One request that is being answered: pieces as they come, saves on the way, a commit at the end.

It runs on the request's thread; the engine knows nothing of it. What it saves is always the state of exactly the text
up to a position, so any worker can go on from there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from model.network.state import HiddenState
from service.engine.sequence import SequenceRequest
from service.engine.stream import Chunk, End, Failed, FinishReason, StateCapture, Stream
from service.errors import ServiceError, SessionConflict, StoreUnavailable, TimedOut
from service.inspection.token_logprobs import TokenLogprobs
from service.models.manager import LoadedModel
from service.store.prefixes import PrefixStore
from service.store.sessions import Session, SessionStore, TurnRecord

log = logging.getLogger(__name__)
_LEFT = ("cancelled", "timeout")


@dataclass(frozen=True, slots=True)
class Finished:
    """How a turn ended: the body of a JSON answer, less its text, and the data of a stream's last event."""

    finish_reason: FinishReason
    session_id: str | None
    position: int
    seed: int
    model: LoadedModel
    prompt_chars: int
    generated_chars: int
    reused_chars: int
    saved: bool
    reencoded: bool

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
                "reused_chars": self.reused_chars,
            },
            "saved": self.saved,
            "reencoded": self.reencoded,
        }


@dataclass(slots=True, eq=False)
class Lease:
    """The right to write a session, kept while the turn runs. Without a store there is nothing to write."""

    sessions: SessionStore
    session_id: str
    token: str
    lease_s: float
    renew_at: float = field(init=False)
    is_there: bool = field(init=False, default=True)  # whether the store still knows the session

    def __post_init__(self) -> None:
        self.renew_at = time.monotonic() + self.lease_s / 3

    def keep(self) -> None:
        """Renew when a third of the time has passed. Raised: SessionConflict when another took over."""
        if self.is_there and time.monotonic() >= self.renew_at:
            self.renew_at = time.monotonic() + self.lease_s / 3
            with contextlib.suppress(StoreUnavailable):  # the text goes on; whether it can be saved shows at its end
                self.is_there = self.sessions.renew(self.session_id, self.token, self.lease_s)

    def save(self, session: Session) -> None:
        """Raised: SessionConflict."""
        if self.is_there:
            self.renew_at = time.monotonic() + self.lease_s / 3
            with contextlib.suppress(StoreUnavailable):
                self.is_there = self.sessions.save(self.session_id, self.token, session, self.lease_s)

    def commit(self, session: Session, reason: FinishReason) -> bool:
        """Whether it was saved. Raised: SessionConflict."""
        try:
            return self.is_there and self.sessions.commit(self.session_id, self.token, session, reason)
        except StoreUnavailable:
            return False

    def abandon(self) -> None:
        with contextlib.suppress(StoreUnavailable):  # it runs out by itself
            self.sessions.abandon(self.session_id, self.token)


@dataclass(slots=True, eq=False)
class Turn:
    """Iterate over `pieces`, then `finish`; `close` at any time, and again.

    `show_from` is the first position that the client has not seen: what is written before it is not shown again.
    """

    request: SequenceRequest
    record: TurnRecord
    start: Session | None  # the session before it
    model: LoadedModel
    lease: Lease | None
    recent_text: str  # the session's text up to the request's start, and its prompt: the end of it
    recent_text_chars: int
    show_from: int
    prefixes: PrefixStore
    kept: Session | None = None  # what is stored of the turn already: the session is never put back before it
    ended_in: str | None = None  # the session whose turn had ended, and is only read again: nothing is written
    looks: TokenLogprobs | None = None  # at what each character was drawn from, when that was asked for
    reused_chars: int = 0
    _stream: Stream | None = field(init=False, default=None)
    _end: End | None = field(init=False, default=None)
    _position: int = field(init=False)  # of what has been shown
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._position = max(self.show_from, self.record.first)

    def look(self, top: int | None) -> None:
        """Tell each character's log-probability, and the `top` most probable ones with it; None tells none.

        To be called before `submit`: the state that the text begins with is asked of the engine, so
        that the prompt is not read a second time. Raised: NoModel.
        """
        if top is None:
            return
        self.looks = TokenLogprobs(self.model.reader, self.model.engine.vocab, self.request.sampling, top)
        if self.request.start_position >= self.record.first:
            self.looks.stand(self.request.state, int(self.request.feed[0]))
        else:
            self.request = replace(self.request, captures={self.record.first: "", **self.request.captures})

    def submit(self) -> None:
        """Put the request into the engine's queue. Raised: QueueFull, Draining."""
        self._stream = self.model.engine.submit(self.request)

    def cancel(self) -> None:
        """End the text at the engine's next block, with nothing stored."""
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    @property
    def session_id(self) -> str | None:
        return self.lease.session_id if self.lease else self.ended_in

    def opening(self) -> dict[str, Any]:
        """What is known before anything is written."""
        return {
            "session_id": self.session_id,
            "position": self._position,
            "seed": self.record.seed,
            "model": self.model.as_dict(),
            "reencoded": self.record.reencoded,
        }

    def pieces(self, patience_s: float) -> Iterator[Chunk | None]:
        """What is written, block by block; None each time nothing came for patience_s.

        Raised: SessionConflict when another took the session over, ServiceError when the text cannot go on.
        """
        assert self._stream is not None, "submit comes first"
        while self._end is None:
            item = self._stream.get(patience_s)
            if self.lease is not None:
                self.lease.keep()
            if isinstance(item, Chunk):
                yield self._take(item)
            elif isinstance(item, StateCapture):
                self._mark(item)
            elif isinstance(item, End):
                self._end = item
            elif isinstance(item, Failed):
                self._fail(item.error)
            else:
                yield None

    def _mark(self, mark: StateCapture) -> None:
        if self.looks is not None and mark.state.position == self.record.first:
            self.looks.stand(mark.state.values, mark.state.next_input)
        if mark.key:
            self.prefixes.put(mark.key, mark.state.to_bytes())

    def _take(self, piece: Chunk) -> Chunk | None:
        self.recent_text = (self.recent_text + piece.text)[-self.recent_text_chars :] if self.recent_text_chars else ""
        if piece.snapshot is not None and self.lease is not None and self._is_new(piece.snapshot):
            self.lease.save(self._session(piece.snapshot))
        if self.looks is not None:
            piece = replace(piece, looks=self.looks.at(piece.text, piece.logprobs))
        new = piece.position - self._position  # a resumed turn writes again what was seen
        if new <= 0:
            return None
        self._position = piece.position
        if new < len(piece.text):
            looks = piece.looks[-new:] if piece.looks is not None else None
            return replace(piece, text=piece.text[-new:], logprobs=piece.logprobs[-new:], looks=looks)
        return piece

    def _fail(self, error: Exception) -> None:
        self._closed = True
        if self.lease is not None:
            self.lease.abandon()
        raise error if isinstance(error, ServiceError) else ServiceError("an error on our side; it has been logged")

    def finish(self) -> Finished:
        """Commit what was shown. Raised: SessionConflict when another took the session over, TimedOut."""
        end = self._end
        assert end is not None, "finish follows the last piece"
        self._closed = True
        saved = self._commit(end)
        if end.state is None:
            raise TimedOut("the time was up before the prompt was read; the session is where it was")
        return Finished(
            finish_reason=end.finish_reason,
            session_id=self.session_id,
            position=end.state.position,
            seed=self.record.seed,
            model=self.model,
            prompt_chars=len(self.record.prompt),
            generated_chars=end.state.position - self.record.first,
            reused_chars=self.reused_chars,
            saved=saved,
            reencoded=self.record.reencoded,
        )

    def close(self) -> None:
        """The reader is gone: stop writing, and keep the session at what was written until then."""
        if self._closed or self._stream is None:
            return
        self._closed = True
        self.looks = None
        self._stream.close()
        try:
            for _ in self.pieces(patience_s=5.0):
                pass
            if self._end is not None:
                self._commit(self._end)
        except SessionConflict:
            pass  # who took it over has it
        except ServiceError as e:
            log.info("a reader left, and where it was could not be kept: %s", e.code)

    def _commit(self, end: End) -> bool:
        """Store where the text ended; where it did not even begin, where it would have begun."""
        if self.lease is None:
            return self.ended_in is not None
        if self.kept is not None and end.finish_reason in _LEFT and not self._is_new(end.state):
            self.lease.abandon()  # who left had been shown nothing that is not stored
            return True
        if end.state is not None:
            return self.lease.commit(self._session(end.state), end.finish_reason)
        if self.start is not None:
            return self.lease.commit(self.start, end.finish_reason)
        self.lease.abandon()
        return False

    def _is_new(self, state: HiddenState | None) -> bool:
        """Whether a state is beyond what is stored of the turn."""
        return self.kept is None or (state is not None and state.position > self.kept.position)

    def _session(self, state: HiddenState) -> Session:
        return Session(
            state, self.record.seed, self.recent_text[-self.recent_text_chars :] if self.recent_text_chars else ""
        )
