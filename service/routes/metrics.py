"""GET /metrics: what all processes of the service have counted, for Prometheus."""

from __future__ import annotations

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service.operations.metrics import Metrics


def blueprint(counted: Metrics) -> Blueprint:
    routes = Blueprint("metrics", __name__)
    registry = CollectorRegistry()
    registry.register(counted)

    @routes.get("/metrics")
    def metrics() -> Response:
        """As open as /healthz: it tells how much is written, not what or by whom."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    return routes
