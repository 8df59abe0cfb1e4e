"""GET /openapi.json: the description of the API. GET /docs, which renders it, is a file of the page."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request

from service.openapi.document import Limits, document


def blueprint(limits: Limits) -> Blueprint:
    """Create the route."""
    routes = Blueprint("openapi", __name__)

    @routes.get("/openapi.json")
    def openapi() -> Response:
        """Needs no key: it says what can be asked, not what was."""
        return jsonify(document(limits, request.script_root))

    return routes
