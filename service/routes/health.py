"""GET /healthz: the process answers. GET /readyz: it can generate, and what it can do besides."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.errors import StoreAway
from service.serving import Serving
from service.store.sessions import SessionStore


def blueprint(serving: Serving, sessions: SessionStore) -> Blueprint:
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @routes.get("/readyz")
    def readyz() -> Response:
        """Ready with sessions away: what needs none is answered, and taking every worker out would end that too."""
        model = serving.current
        try:
            sessions.ping()
            store = "ok"
        except StoreAway:
            store = "away"
        return jsonify(
            status="ready",
            sessions=store,
            model=model.as_dict(),
            stepper=model.engine.stepper_name,
            slots=model.engine.n_slots,
            in_flight=model.engine.in_flight,
        )

    return routes
