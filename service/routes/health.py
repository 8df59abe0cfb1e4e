"""GET /healthz: the process answers. GET /readyz: it can generate, and what it can do besides."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from service.errors import Draining, NoModel, StoreUnavailable
from service.models.manager import ModelManager
from service.models.watcher import CheckpointWatcher
from service.operations.drain import Drain
from service.store.sessions import SessionStore


def blueprint(serving: ModelManager, sessions: SessionStore, reloader: CheckpointWatcher, drain: Drain) -> Blueprint:
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @routes.get("/readyz")
    def readyz() -> Response:
        """Ready with sessions away: what needs none is answered, and taking every worker out would end that too.

        Ready too while the first model is being trained, for who asks to generate is told of the job; without a model
        and without such a job it is not. A promoted checkpoint that was refused is told, with the reason.
        A worker that is about to stop is not, before it refuses anything.
        """
        refused = reloader.refused
        told: dict[str, Any] = {
            "sessions": _sessions(sessions),
            "refused": {"name": refused.name, "reason": refused.reason} if refused is not None else None,
            "swaps": reloader.swaps_total,
            "refusals": reloader.refusals_total,
            "retiring": serving.n_retired,
        }
        if drain.is_draining:
            raise Draining("this worker is stopping", **told)
        try:
            model = serving.current
        except NoModel as e:
            if "job" not in e.details:
                raise NoModel(str(e), **told) from e
            return jsonify(status="training", model=None, job=e.details["job"], **told)
        return jsonify(
            status="ready",
            model=model.as_dict(),
            stepper=model.engine.stepper_name,
            slots=model.engine.n_slots,
            in_flight=model.engine.in_flight,
            **told,
        )

    return routes


def _sessions(sessions: SessionStore) -> str:
    try:
        sessions.ping()
    except StoreUnavailable:
        return "away"
    return "ok"
