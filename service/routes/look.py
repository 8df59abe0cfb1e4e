"""POST /score: how surprising a text is. POST /inspect: the network's gates as it reads one."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from service.inspection.inspection import InspectionService
from service.routes import body
from service.schemas import InspectRequest, ScoreRequest


def blueprint(looking: InspectionService) -> Blueprint:
    routes = Blueprint("look", __name__)

    @routes.post("/score")
    def score() -> Response:
        return jsonify(looking.score(body.read(ScoreRequest)))

    @routes.post("/inspect")
    def inspect() -> Response:
        return jsonify(looking.inspect(body.read(InspectRequest)))

    return routes
