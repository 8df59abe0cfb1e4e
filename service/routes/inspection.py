"""POST /score: how probable a text is. POST /inspect: the network's gates while it reads a text."""

from __future__ import annotations

from flask import Blueprint, Response, g, jsonify
from pydantic_core import to_json

from service.access.limits import RateLimiter
from service.inspection.service import InspectionService
from service.routes.access import count_request
from service.routes.body import read_body
from service.routes.sse import ClientConnection
from service.schemas import InspectRequest, ScoreRequest


def blueprint(inspection: InspectionService, characters: RateLimiter) -> Blueprint:
    """Create the routes; `characters` limits how many of them a client may send."""
    routes = Blueprint("inspection", __name__)

    @routes.post("/score")
    def score() -> Response:
        body = read_body(ScoreRequest)
        count_request(body.model, body.session_id)
        texts = [body.text] if isinstance(body.text, str) else body.text
        characters.hit(_client_id(), sum(map(len, texts)))
        answer = inspection.score(body, ClientConnection(is_stream=False).check)
        if isinstance(body.text, str):
            return jsonify(answer)
        return Response(to_json(answer), mimetype="application/json")  # thousands of results: json.dumps takes longer

    @routes.post("/inspect")
    def inspect() -> Response:
        body = read_body(InspectRequest)
        count_request(body.model)
        characters.hit(_client_id(), len(body.text))
        return jsonify(inspection.inspect(body))

    return routes


def _client_id() -> str:
    """The client as routes/access.py identified it, with a name of its own for this limit."""
    return f"characters:{g.get('client_id', '')}"
