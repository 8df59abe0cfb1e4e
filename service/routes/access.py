"""Who may use which routes: a check before each request of a blueprint."""

from __future__ import annotations

from flask import Blueprint, request

from service.operations.auth import Authenticator
from service.operations.limits import RateLimiter


def for_clients(routes: Blueprint, authenticator: Authenticator, limiter: RateLimiter) -> Blueprint:
    """Require an API key, if any are set, and count requests against the rate limit."""

    def check() -> None:
        authorization, address = request.headers.get("Authorization"), request.remote_addr or ""
        authenticator.check_api(authorization, address)
        limiter.hit(authenticator.client_id(authorization, address))

    routes.before_request(check)
    return routes


def for_operators(routes: Blueprint, authenticator: Authenticator) -> Blueprint:
    """Require the admin key, or, without one, a client on this machine."""

    def check() -> None:
        authenticator.check_admin(request.headers.get("Authorization"), request.host, request.remote_addr or "")

    routes.before_request(check)
    return routes
