"""Every error as an HTTP response of one form: {"error": {"code", "message", ...}}.

On the addresses of the OpenAI protocol, /v1/..., the form is that protocol's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from model.errors import StorageError
from service.errors import (
    BodyTooLarge,
    ClientDisconnected,
    Forbidden,
    ModelNotAllowed,
    QueueFull,
    RateLimited,
    ServiceError,
    StorageFailed,
    StorageFull,
    Unauthorized,
)
from service.openai import errors as openai_errors

log = logging.getLogger(__name__)
_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a request whose client has left; only the access log has it."""


class RoutingError(HTTPException):
    """A ServiceError raised while Flask matches the address: routing passes on no other kind of exception."""

    def __init__(self, error: ServiceError) -> None:
        """Wrap the error that the client is to see."""
        super().__init__(str(error))
        self.code = error.status
        self.error = error


def is_openai_request() -> bool:
    """Whether the client speaks the OpenAI protocol, so that it expects errors in that form."""
    return request.path.startswith("/v1/")


def register(
    app: Flask, count_refused_request: Callable[[], None], count_denied_request: Callable[[str], None]
) -> None:
    """Make the app answer every error in this form.

    Args:
        app: The app.
        count_refused_request: Called for each request that is refused because the queue is full.
        count_denied_request: Called with the code of each refusal because of a key, a source or a rate.
    """

    def queue_full_response(error: QueueFull) -> Response:
        count_refused_request()
        return error_response(error)

    def denied_response(error: ServiceError) -> Response:
        count_denied_request(error.code)
        return error_response(error)

    app.register_error_handler(QueueFull, queue_full_response)
    for denial in (Unauthorized, Forbidden, ModelNotAllowed, RateLimited):
        app.register_error_handler(denial, denied_response)
    app.register_error_handler(ClientDisconnected, lambda _: Response(status=_CLIENT_CLOSED_REQUEST))
    app.register_error_handler(ServiceError, error_response)
    app.register_error_handler(StorageError, _storage_error_response)
    app.register_error_handler(HTTPException, _http_error_response)
    app.register_error_handler(Exception, _internal_error_response)


def error_response(error: ServiceError) -> Response:
    """Return the response for an error, with the headers that belong to its class."""
    if is_openai_request():
        status, body = openai_errors.status_of(error), openai_errors.error_body(error)
    else:
        status, body = error.status, {"error": error.as_dict()}
    response = jsonify(body)
    response.status_code = status
    if is_openai_request() and openai_errors.should_not_retry(status, error.retry_after_s):
        response.headers["x-should-retry"] = "false"
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge):
        response.headers["Connection"] = "close"  # or the rest of the body would be read as the next request
    return response


def _http_error_response(error: HTTPException) -> Response:
    if isinstance(error, RoutingError):
        return error_response(error.error)
    code = (error.name or "error").lower().replace(" ", "_")
    status, message = error.code or 500, error.description or code
    is_openai = is_openai_request()
    body = openai_errors.error_object(status, code, message) if is_openai else {"code": code, "message": message}
    response = jsonify(body if is_openai else {"error": body})
    response.status_code = status
    if is_openai and openai_errors.should_not_retry(status, None):
        response.headers["x-should-retry"] = "false"
    response.headers.extend([(name, value) for name, value in error.get_headers() if name == "Allow"])
    return response


def _storage_error_response(error: StorageError) -> Response:
    """Return the response for a file that cannot be written or read; the folder's owner has to act."""
    log.error("%s", error)
    return error_response(StorageFull(str(error)) if error.is_full else StorageFailed(str(error)))


def _internal_error_response(_error: Exception) -> Response:
    log.exception("internal error while answering a request")
    return error_response(ServiceError("internal error; the log of the service has the details"))
