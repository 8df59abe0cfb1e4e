"""GET /metrics: the metrics of all processes of the service, for Prometheus."""

from __future__ import annotations

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service.operations.metrics import Metrics


def blueprint(collector: Metrics) -> Blueprint:
    """Return the route."""
    routes = Blueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(collector)

    @routes.get("/metrics")
    def metrics() -> Response:
        """Needs no key, like /healthz: it shows how much is generated, not what or by whom."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    return routes
