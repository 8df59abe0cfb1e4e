"""Who may use which routes: checks before a request is handled."""

from __future__ import annotations

from flask import Blueprint, Flask, g, has_request_context, request

from model.checkpoints.names import DEFAULT, is_fingerprint
from service.access.auth import Authenticator, RequestSource
from service.access.limits import RateLimiter

_FORWARDING_HEADERS = (
    "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Prefix", "X-Forwarded-Proto", "X-Real-IP", "Via",
)  # fmt: skip


def for_everyone(app: Flask, authenticator: Authenticator) -> None:
    """Refuse web pages of other sites on every route, also on addresses that do not exist."""
    app.before_request(lambda: authenticator.check_source(_source()))


def for_clients(routes: Blueprint, authenticator: Authenticator, limiter: RateLimiter) -> Blueprint:
    """Require an API key, if any are set; `count_request` counts the requests of its clients against the rate limit."""

    def check() -> None:
        source = _source()
        key = authenticator.check_api(source)
        g.key_id, g.client_id = authenticator.key_id(source), authenticator.client_id(source)
        g.allowed_models = key.models if key is not None else None
        g.count_request = lambda: limiter.hit(g.client_id, rate=key.rate if key is not None else "")

    routes.before_request(check)
    return routes


def for_operators(routes: Blueprint, authenticator: Authenticator) -> Blueprint:
    """Require the admin key, or, without one, a client on this machine."""

    def check() -> None:
        source = _source()
        authenticator.check_admin(source)
        g.operator = f"{'ADMIN_KEY' if authenticator.has_admin_key else 'a client without a key'} from {source.address}"

    routes.before_request(check)
    return routes


def count_request(model: str | None, session_id: str | None = None) -> None:
    """Count the current request against its client's rate: one that generates, scores or inspects, once it is read.

    A request that names a model which its key may not use is about to be refused, so it is not counted.

    Args:
        model: The name or id that the request names; None: it names none.
        session_id: The session whose model it uses, if it names one.

    Raises:
        RateLimited: The client's rate is used up.
    """
    allowed, name, count = allowed_models(), model or DEFAULT, g.get("count_request")
    if count is None:  # routes that are not guarded
        return
    if allowed is None or session_id is not None or name in allowed or is_fingerprint(name):
        count()


def allowed_models() -> frozenset[str] | None:
    """Return the names of the models that the current request's key may use; None: all, and outside of requests."""
    return g.get("allowed_models") if has_request_context() else None


def _source() -> RequestSource:
    return RequestSource(
        authorization=request.headers.get("Authorization"),
        host=request.host,
        origin=request.headers.get("Origin"),
        address=request.remote_addr or "",
        is_forwarded=any(name in request.headers for name in _FORWARDING_HEADERS),
    )
