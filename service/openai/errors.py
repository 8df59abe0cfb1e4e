"""The service's errors in the form of the protocol: `{"error": {"message", "type", "param", "code"}}`.

The official clients send a request again after 408, 409, 429 and every 5xx. Where that cannot help, they are told so.
"""

from __future__ import annotations

from typing import Any

from service.errors import BadRequest, RateLimited, ServiceError, Unauthorized, UnknownModel

_CODES: dict[type[ServiceError], str] = {
    UnknownModel: "model_not_found",
    Unauthorized: "invalid_api_key",
    RateLimited: "rate_limit_exceeded",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_RETRIED = (408, 409, 429)


def status_of(error: ServiceError | type[ServiceError]) -> int:
    """Return the status of an error, or of a class of them: the service's, but 400 for a value that cannot be used."""
    return 400 if error.status == 422 else error.status


def error_body(error: ServiceError) -> dict[str, Any]:
    """Return the body of a response, or the data of a stream's last event."""
    param = error.field if isinstance(error, BadRequest) else error.details.get("param")
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), error.code)
    return error_object(status_of(error), code, str(error), param)


def error_object(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Return the body for an error that is none of the service's own, such as an address that does not exist."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def should_not_retry(status: int, retry_after_s: int | None) -> bool:
    """Whether a client would send the request again although that cannot help."""
    return retry_after_s is None and (status in _RETRIED or status >= 500)
