"""/sessions/{id}: what a session holds, its stream again, a fork of it, and how it is forgotten."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest, UnknownSession
from service.generation import replay
from service.generation.generation import Generation
from service.routes.body import read_body
from service.routes.generation_events import GenerationEvents
from service.routes.sse import client_disconnect_check, event_stream_response
from service.schemas import MAX_TOP_LOGPROBS, ForkRequest
from service.store.sessions import NO_SESSION, SessionStore


def blueprint(generation: Generation, sessions: SessionStore, recent_text_chars: int) -> Blueprint:
    routes = Blueprint("sessions", __name__, url_prefix="/sessions")

    @routes.get("/<session_id:session_id>")
    def get(session_id: str) -> Response:
        session, last = sessions.load(session_id)
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

    @routes.get("/<session_id:session_id>/stream")
    def stream(session_id: str) -> Response:
        turn = generation.resume(session_id, _after(), _logprobs())
        return event_stream_response(GenerationEvents(turn, client_disconnect_check()))

    @routes.post("/<session_id:session_id>/fork")
    def fork(session_id: str) -> tuple[Response, int]:
        wanted = read_body(ForkRequest)
        new_id, session = generation.fork(session_id, wanted.position, wanted.seed)
        return jsonify(session_id=new_id, position=session.position, seed=session.seed), 201

    @routes.delete("/<session_id:session_id>")
    def delete(session_id: str) -> Response:
        if not sessions.delete(session_id):
            raise UnknownSession(NO_SESSION)
        return Response(status=204)

    return routes


def _after() -> int | None:
    """The position after which the client wants the stream: Last-Event-ID, as browsers send it, or ?from=."""
    for field, value in (("Last-Event-ID", request.headers.get("Last-Event-ID")), ("from", request.args.get("from"))):
        if value:
            if not re.fullmatch(r"\d{1,18}", value):
                raise BadRequest(field, value, "a position: an integer from 0")
            return int(value)
    return None


def _logprobs() -> int | None:
    value = request.args.get("logprobs")
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,2}", value) or int(value) > MAX_TOP_LOGPROBS:
        raise BadRequest("logprobs", value, f"an integer from 0 to {MAX_TOP_LOGPROBS}")
    return int(value)
