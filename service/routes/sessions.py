"""/sessions/{id}: what a session holds, its last turn as a stream, a fork of it, and its deletion."""

from __future__ import annotations

import re
from typing import Any

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest, NoTurn, UnknownSession
from service.generation.rewind import rewindable_range
from service.generation.service import GenerationService
from service.models.manager import ModelManager
from service.routes.access import allowed_models, count_request
from service.routes.arguments import model_argument
from service.routes.body import no_content, read_body
from service.routes.generation_events import generation_events
from service.routes.sse import ClientConnection, event_stream_head, event_stream_response
from service.schemas import MAX_TOP_LOGPROBS, ForkRequest
from service.store.sessions import SessionStore, StoredTurn


def blueprint(
    generation: GenerationService, sessions: SessionStore, models: ModelManager, recent_text_chars: int
) -> Blueprint:
    """Create the routes."""
    routes = Blueprint("sessions", __name__, url_prefix="/sessions")

    def check_key(session_id: str) -> None:
        if allowed_models() is not None:
            models.of_session(sessions, session_id)

    @routes.get("/<session_id:session_id>")
    def get(session_id: str) -> Response:
        check_key(session_id)
        session, turn = sessions.load(session_id)
        low, high = rewindable_range(turn, session)
        answer: dict[str, Any] = {
            "session_id": session_id,
            "rewindable": {"from": low, "to": high},
            "turn": _turn(turn, recent_text_chars) if turn is not None else None,
        }
        if session is not None:
            answer |= {"position": session.position, "seed": session.seed, "recent_text": session.recent_text}
            return jsonify(**answer, model=session.state.fingerprint, model_name=session.model)
        if turn is None or turn.is_complete:  # a turn may outlive its session
            raise UnknownSession("the session does not exist or has expired")
        record = turn.record
        names = {"model": record.fingerprint, "model_name": record.model}
        return jsonify(**answer, position=0, seed=record.seed, recent_text="", **names)

    @routes.get("/<session_id:session_id>/stream")
    def stream(session_id: str) -> Response:
        check_key(session_id)
        after, top_logprobs, client = _after(), _top_logprobs(), ClientConnection(is_stream=True)
        if request.method == "HEAD":  # to resume would take the session over from the client that reads its stream
            session, turn = sessions.load(session_id)
            if session is None and turn is None:
                raise UnknownSession("the session does not exist or has expired")
            if turn is None:
                raise NoTurn("the session has no turn that could be resumed")
            return event_stream_head()
        if after is not None and generation.is_received(session_id, after):
            return no_content()  # on 204 an EventSource does not reconnect
        count_request(None, session_id)
        running = generation.resume(session_id, after, top_logprobs, model_argument())
        return event_stream_response(generation_events(running), client, running.close)

    @routes.post("/<session_id:session_id>/fork")
    def fork(session_id: str) -> tuple[Response, int]:
        check_key(session_id)
        body = read_body(ForkRequest)
        count_request(None, session_id)
        fork_id, session = generation.fork(
            session_id, body.position, body.seed, ClientConnection(is_stream=False).check
        )
        return jsonify(session_id=fork_id, position=session.position, seed=session.seed), 201

    @routes.delete("/<session_id:session_id>")
    def delete(session_id: str) -> Response:
        check_key(session_id)
        if not sessions.delete(session_id):
            raise UnknownSession("the session does not exist or has expired")
        return no_content()

    return routes


def _turn(turn: StoredTurn, recent_text_chars: int) -> dict[str, Any]:
    """The last turn: its status, and where its generated text begins, after which text."""
    return {
        "status": turn.status,
        "start_position": turn.record.prompt_end,
        "text_before": turn.recent_before.last(recent_text_chars).text,
        "prompt_chars": len(turn.record.prompt),
    }


def _after() -> int | None:
    """The position after which the client wants the stream: Last-Event-ID, as browsers send it, or ?from=."""
    for field, value in (("Last-Event-ID", request.headers.get("Last-Event-ID")), ("from", request.args.get("from"))):
        if value:
            if not re.fullmatch(r"[0-9]{1,18}", value):
                raise BadRequest(field, value, "a position: an integer from 0")
            return int(value)
    return None


def _top_logprobs() -> int | None:
    value = request.args.get("logprobs")
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,2}", value) or int(value) > MAX_TOP_LOGPROBS:
        raise BadRequest("logprobs", value, f"an integer from 0 to {MAX_TOP_LOGPROBS}")
    return int(value)
