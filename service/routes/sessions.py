"""/sessions/{id}: what a session holds, its stream again, a fork of it, and how it is forgotten."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest, UnknownSession
from service.generation import replay
from service.generation.generation import Generation
from service.routes import body
from service.routes.sse import EventStream, reader_watch
from service.schemas import MAX_TOP, ForkRequest
from service.store.sessions import NO_SESSION, SESSION_ID, SessionStore


def blueprint(generation: Generation, sessions: SessionStore, recent_text_chars: int) -> Blueprint:
    routes = Blueprint("sessions", __name__, url_prefix="/sessions")

    @routes.get("/<session_id>")
    def get(session_id: str) -> Response:
        session, last = sessions.load(_checked(session_id))
        low, high = replay.reach(last, session)
        found: dict[str, Any] = {"session_id": session_id, "rewindable": {"from": low, "to": high}, "turn": None}
        if last is not None:
            found["turn"] = last.finish_reason or ("running" if last.is_running else "interrupted")
            found["began"] = {"position": last.record.first, "text": replay.text_before(last, recent_text_chars)}
        if session is not None:
            found |= {"position": session.position, "seed": session.seed, "recent_text": session.recent_text}
            return jsonify(**found, model=session.state.fingerprint)
        if last is None:
            raise UnknownSession(NO_SESSION)
        return jsonify(**found, position=0, seed=last.record.seed, recent_text="", model=last.record.fingerprint)

    @routes.get("/<session_id>/stream")
    def stream(session_id: str) -> Response:
        turn = generation.resume(_checked(session_id), _after(), _logprobs())
        return EventStream(turn, reader_watch()).response()

    @routes.post("/<session_id>/fork")
    def fork(session_id: str) -> tuple[Response, int]:
        wanted = body.read(ForkRequest)
        new_id, session = generation.fork(_checked(session_id), wanted.position, wanted.seed)
        return jsonify(session_id=new_id, position=session.position, seed=session.seed), 201

    @routes.delete("/<session_id>")
    def delete(session_id: str) -> Response:
        if not sessions.delete(_checked(session_id)):
            raise UnknownSession(NO_SESSION)
        return Response(status=204)

    return routes


def _checked(session_id: str) -> str:
    if not re.fullmatch(SESSION_ID, session_id):
        raise BadRequest(
            f"session_id: got {session_id[:80]!r}, expected {SESSION_ID}",
            field="session_id", value=session_id[:80], expected=SESSION_ID,
        )  # fmt: skip
    return session_id


def _after() -> int | None:
    """The position after which the client wants the stream: Last-Event-ID, as browsers send it, or ?from=."""
    for field, value in (("Last-Event-ID", request.headers.get("Last-Event-ID")), ("from", request.args.get("from"))):
        if value:
            if not re.fullmatch(r"\d{1,18}", value):
                raise BadRequest(
                    f"{field}: got {value[:80]!r}, expected a position: a whole number from 0",
                    field=field, value=value[:80], expected="a whole number from 0",
                )  # fmt: skip
            return int(value)
    return None


def _logprobs() -> int | None:
    value = request.args.get("logprobs")
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,2}", value) or int(value) > MAX_TOP:
        raise BadRequest(
            f"logprobs: got {value[:80]!r}, expected 0 to {MAX_TOP}",
            field="logprobs", value=value[:80], expected=f"0 to {MAX_TOP}",
        )  # fmt: skip
    return int(value)
