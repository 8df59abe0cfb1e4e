"""POST /score: how probable a text is. POST /inspect: the network's gates while it reads a text."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.inspection.service import InspectionService
from service.routes.body import read_body
from service.schemas import InspectRequest, ScoreRequest


def blueprint(inspection: InspectionService) -> Blueprint:
    """Create the routes."""
    routes = Blueprint("inspection", __name__)

    @routes.post("/score")
    def score() -> Response:
        return jsonify(inspection.score(read_body(ScoreRequest)))

    @routes.post("/inspect")
    def inspect() -> Response:
        return jsonify(inspection.inspect(read_body(InspectRequest)))

    return routes
