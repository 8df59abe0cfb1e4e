"""GET /healthz: the process answers. GET /readyz: it can generate, and what it can do besides."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.engine.engine import Engine
from service.errors import StoreAway
from service.generation import ModelInfo
from service.store.sessions import SessionStore


def blueprint(engine: Engine, model: ModelInfo, sessions: SessionStore) -> Blueprint:
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @routes.get("/readyz")
    def readyz() -> Response:
        """Ready with sessions away: what needs none is answered, and taking every worker out would end that too."""
        try:
            sessions.ping()
            store = "ok"
        except StoreAway:
            store = "away"
        return jsonify(
            status="ready",
            sessions=store,
            model=model.as_dict(),
            stepper=engine.stepper_name,
            slots=engine.n_slots,
            in_flight=engine.in_flight,
        )

    return routes
