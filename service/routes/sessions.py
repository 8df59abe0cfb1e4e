"""GET and DELETE /sessions/{id}: what a session holds, and how it is forgotten."""

from __future__ import annotations

import re

from flask import Blueprint, Response, jsonify

from service.errors import BadRequest, UnknownSession
from service.store.sessions import SESSION_ID, SessionStore


def blueprint(sessions: SessionStore) -> Blueprint:
    routes = Blueprint("sessions", __name__, url_prefix="/sessions")

    @routes.get("/<session_id>")
    def get(session_id: str) -> Response:
        session = sessions.load(_checked(session_id))
        if session is None:
            raise UnknownSession("no such session: it never was, was deleted, or has expired")
        state = session.state
        return jsonify(
            session_id=session_id,
            position=state.position,
            seed=session.seed,
            model=state.fingerprint,
            tail=session.tail,
        )

    @routes.delete("/<session_id>")
    def delete(session_id: str) -> Response:
        if not sessions.delete(_checked(session_id)):
            raise UnknownSession("no such session: it never was, was deleted, or has expired")
        return Response(status=204)

    return routes


def _checked(session_id: str) -> str:
    if not re.fullmatch(SESSION_ID, session_id):
        raise BadRequest(
            f"session_id: got {session_id[:80]!r}, expected {SESSION_ID}",
            field="session_id", value=session_id[:80], expected=SESSION_ID,
        )  # fmt: skip
    return session_id
