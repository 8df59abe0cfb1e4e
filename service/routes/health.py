"""GET /healthz: the process answers. GET /readyz: it can generate, and the state of its parts."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify

from service.errors import Draining, NoModel, StoreUnavailable
from service.models.manager import ModelManager
from service.models.watcher import CheckpointWatcher
from service.operations.drain import Drain
from service.store.sessions import SessionStore


def blueprint(models: ModelManager, sessions: SessionStore, watcher: CheckpointWatcher, drain: Drain) -> Blueprint:
    """Create the routes."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @routes.get("/readyz")
    def readyz() -> Response:
        """Answer 200 if requests should be sent to this worker.

        It is ready without its session store: requests without a session are answered, and if every worker were taken
        out, those would fail too. It is ready while the first model is trained: the error of a request names the job.
        It is not ready when it drains, before it refuses the first request.
        """
        state: dict[str, Any] = {
            "session_store": _store_status(sessions),
            "refused_checkpoint": watcher.refused.as_dict() if watcher.refused is not None else None,
            "model_swaps": watcher.n_swaps,
            "model_swaps_refused": watcher.n_refused,
            "retired_models": models.n_retired,
        }
        if drain.is_draining:
            raise Draining("this worker is shutting down", **state)
        try:
            model = models.current
        except NoModel as e:
            if "job" not in e.details:
                raise NoModel(str(e), **state) from e
            return jsonify(status="training", model=None, job=e.details["job"], **state)
        return jsonify(
            status="ready",
            model=model.as_dict(),
            stepper=model.engine.stepper_name,
            stepper_reason=model.stepper_reason,
            slots=model.engine.n_slots,
            in_flight=models.in_flight,
            **state,
        )

    return routes


def _store_status(sessions: SessionStore) -> str:
    try:
        sessions.ping()
    except StoreUnavailable:
        return "unavailable"
    return "ok"
