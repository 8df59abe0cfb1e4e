"""A turn, from its record and a state before it, as a sequence for the engine: for the first time or again.

A turn's text is a function of its record and of the session before it. So it can be written again from its start, or
from any save on the way, and every character comes out as it was shown.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from service.engine.sequence import SequenceRequest
from service.engine.stream import Chunk, End, Failed, Stream
from service.errors import ModelChanged, ServiceError, SessionConflict, TimedOut
from service.models.manager import LoadedModel
from service.store.sessions import Session, StoredTurn, TurnRecord

_PATIENCE_S = 60.0


def is_of(model: LoadedModel, session: Session) -> bool:
    """Whether this model, in this arithmetic, made the session's state."""
    return session.state.fits(model.fingerprint, model.engine.numerics)


def from_start(model: LoadedModel, record: TurnRecord, start: Session | None) -> SequenceRequest:
    """The whole turn. A session of another model is read anew from the end of its text, and keeps its position."""
    vocab = model.engine.vocab
    read = vocab.encode(record.prompt)
    if start is None:
        return _sequence(record, vocab.start, read, 0, None, record.max_chars)
    if is_of(model, start):
        return _sequence(record, start.state.next_input, read, start.position, start.state.values, record.max_chars)
    recent_text = vocab.encode(start.recent_text, "skip")
    read = np.concatenate([recent_text, read])
    return _sequence(record, vocab.start, read, start.position - len(recent_text), None, record.max_chars)


def from_nearest(model: LoadedModel, last: StoredTurn, session: Session | None, at: int) -> tuple[SequenceRequest, str]:
    """The turn from its newest save at or before `at`, or from its start; and the session's text before it, its end.

    Raised: ModelChanged when the turn was written by another model or arithmetic than this one.
    """
    record = last.record
    if (record.fingerprint, record.numerics) != (model.fingerprint, model.engine.numerics):
        raise ModelChanged("this turn was written by another model, which is not served any more")
    for save in (session, last.before):
        if save is not None and record.first <= save.position <= at and is_of(model, save):
            left = record.first + record.max_chars - save.position
            nothing = np.empty(0, dtype=np.int32)
            state = save.state
            return _sequence(record, state.next_input, nothing, state.position, state.values, left), save.recent_text
    return from_start(model, record, last.start), (last.start.recent_text if last.start else "") + record.prompt


def rewound(
    model: LoadedModel, last: StoredTurn | None, session: Session | None, to: int, recent_text_chars: int
) -> Session | None:
    """The session as it was at position `to`; None for one that has not begun.

    Raised: SessionConflict with the range that can be reached, ModelChanged, and what the engine raises.
    """
    if session is not None and session.position == to:
        return session
    low, high = reach(last, session)
    if last is None or not low <= to <= high:
        raise SessionConflict(
            f"position {to} cannot be reached; expected {low} to {high}",
            position=session.position if session else 0,
            rewindable={"from": low, "to": high},
        )
    if to == last.record.start:
        return last.start
    request, recent_text = from_nearest(model, last, session, to)
    if to < last.record.first:
        record = replace(last.record, prompt=last.record.prompt[: to - last.record.start], max_chars=0)
        request = from_start(model, record, last.start)
        recent_text = (last.start.recent_text if last.start else "") + record.prompt
    else:
        request = replace(request, max_chars=request.max_chars - (last.record.first + last.record.max_chars - to))
    text, end = _read(model.engine.submit(request))
    if end.state is None or end.state.position != to:
        raise SessionConflict(f"position {to} cannot be reached: the text ends before it", position=low)
    return Session(end.state, last.record.seed, (recent_text + text)[-recent_text_chars:] if recent_text_chars else "")


def reach(last: StoredTurn | None, session: Session | None) -> tuple[int, int]:
    """The first and last position that a session can be put back to."""
    at = session.position if session else 0
    if last is None:
        return at, at
    record = last.record
    return record.start, at if last.finish_reason else record.first + record.max_chars


def text_before(last: StoredTurn, recent_text_chars: int) -> str:
    """The end of the session's text before what the turn itself writes: what was there, and the turn's prompt."""
    text = (last.start.recent_text if last.start else "") + last.record.prompt
    return text[-recent_text_chars:] if recent_text_chars else ""


def _sequence(
    record: TurnRecord, next_input: int, read: np.ndarray, position: int, values: np.ndarray | None, remaining: int
) -> SequenceRequest:
    return SequenceRequest(
        feed=np.concatenate([[next_input], read]).astype(np.int32),
        start_position=position,
        max_chars=remaining,
        sampling=record.sampling,
        seed=record.seed,
        state=values,
        stop=tuple(record.stop),
    )


def _read(stream: Stream) -> tuple[str, End]:
    text = ""
    while True:
        item = stream.get(_PATIENCE_S)
        if isinstance(item, Chunk):
            text += item.text
        elif isinstance(item, End):
            return text, item
        elif isinstance(item, Failed):
            raise item.error if isinstance(item.error, ServiceError) else ServiceError("an error on our side")
        elif item is None:
            stream.close()
            raise TimedOut("the position could not be reached in time")
