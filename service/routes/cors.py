"""Cross-origin resource sharing: web pages of the origins in CORS_ORIGINS may use the service; by default none may.

A preflight carries no key, so it is answered before keys are checked. Cookies are never used, and never allowed.
"""

from __future__ import annotations

from flask import Flask, Response, request

from service.routes.body import no_content

ANY = "*"
_METHODS = "GET, HEAD, POST, PUT, DELETE"
_EXPOSED = "Location, Retry-After, X-Should-Retry"
_MAX_AGE_S = "600"


def register(app: Flask, origins: tuple[str, ...]) -> None:
    """Answer preflights, and let the pages of these origins read responses. To be called before keys are checked.

    Args:
        app: The app.
        origins: In lower case; "*" is any.
    """
    if not origins:
        return

    def allowed_origin() -> str | None:
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        return ANY if ANY in origins else origin if origin.lower() in origins else None

    def answer_preflight() -> Response | None:
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if allowed_origin() is None or request.routing_exception is not None:
            return None
        response = no_content()
        response.headers["Access-Control-Allow-Methods"] = _METHODS
        requested = request.headers.get("Access-Control-Request-Headers")
        if requested:  # such as Authorization, and what client libraries add
            response.headers["Access-Control-Allow-Headers"] = requested
        if "Access-Control-Request-Private-Network" in request.headers:
            response.headers["Access-Control-Allow-Private-Network"] = "true"
        response.headers["Access-Control-Max-Age"] = _MAX_AGE_S
        return response

    def add_headers(response: Response) -> Response:
        origin = allowed_origin()
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.vary.add("Origin")
        return response

    app.before_request(answer_preflight)
    app.after_request(add_headers)
