"""Every error as an HTTP response of one form: {"error": {"code", "message", ...}}."""

from __future__ import annotations

import logging

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from model.errors import StorageError
from service.errors import BodyTooLarge, ServiceError, StorageFailed, StorageFull, Unauthorized

log = logging.getLogger(__name__)


class RoutingError(HTTPException):
    """A ServiceError raised while Flask matches the address: routing passes on no other kind of exception."""

    def __init__(self, error: ServiceError) -> None:
        """Wrap the error that the client is to see."""
        super().__init__(str(error))
        self.code = error.status
        self.error = error


def register(app: Flask) -> None:
    """Make the app answer every error in this form."""
    app.register_error_handler(ServiceError, error_response)
    app.register_error_handler(StorageError, _storage_error_response)
    app.register_error_handler(HTTPException, _http_error_response)
    app.register_error_handler(Exception, _internal_error_response)


def error_response(error: ServiceError) -> Response:
    """Return the response for an error, with the headers that belong to its class."""
    response = jsonify({"error": error.as_dict()})
    response.status_code = error.status
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
    response = jsonify({"error": {"code": code, "message": error.description}})
    response.status_code = error.code or 500
    response.headers.extend([(name, value) for name, value in error.get_headers() if name == "Allow"])
    return response


def _storage_error_response(error: StorageError) -> Response:
    """Return the response for a file that cannot be written or read; the folder's owner has to act."""
    log.error("%s", error)
    return error_response(StorageFull(str(error)) if error.is_full else StorageFailed(str(error)))


def _internal_error_response(_error: Exception) -> Response:
    log.exception("internal error while answering a request")
    return error_response(ServiceError("internal error; the log of the service has the details"))
