"""GET /model: what the served model is, for those who may use it."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.models.manager import ModelManager


def blueprint(manager: ModelManager) -> Blueprint:
    """Create the route."""
    routes = Blueprint("model", __name__)

    @routes.get("/model")
    def describe() -> Response:
        model = manager.current
        return jsonify(**model.description, characters=model.engine.vocab.characters)

    return routes
