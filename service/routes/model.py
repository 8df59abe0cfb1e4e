"""GET /model: what a model is, for those who may use it."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.models.manager import ModelManager
from service.routes.arguments import model_argument


def blueprint(manager: ModelManager) -> Blueprint:
    """Create the route."""
    routes = Blueprint("model", __name__)

    @routes.get("/model")
    def describe() -> Response:
        with manager.acquire(model_argument()) as lease:
            return jsonify(**lease.model.description, characters=lease.model.engine.vocab.characters)

    return routes
