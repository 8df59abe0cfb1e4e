"""Every error that the client raises.

LonghandError
├── ConnectionFailed      no connection, or it was lost, and the retries are used up or not possible
├── InvalidResponse       the answer is not one of this API: another server, or another version of it
└── APIError              the server answered with an error: `status`, `code`, and the details below
    ├── InvalidRequest    400, 413, 415, 422  a value cannot be used: `field`, `value` and `expected` say which and why
    ├── Unauthorized      401  a key is required, and none or a wrong one was sent
    ├── Forbidden         403  this key, or a client at this address, may not do this
    ├── NotFound          404  no such session, turn, job, model or corpus
    ├── Conflict          409  the session, job, model or corpus is not in the state that the request expects
    ├── Overloaded        429  the server is at capacity, or this client sends requests too often
    ├── Unavailable       503  something that the server needs is missing: a model, the session store, a disk
    ├── TimedOut          504  timeout_s or the server's limit passed before the prompt was read
    └── ServerError       every other status: the server or a gateway failed

The client repeats what can succeed later (longhand/retry.py), so an error that arrives here is final: `attempts` says
how often the request was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

QUOTED_CHARS = 200
"""How much of an unexpected answer an error quotes."""


class LonghandError(Exception):
    """Base of the tree."""

    attempts: int = 1
    """How often the request was sent, or for a stream, how often in a row without any new text."""
    may_be_done: bool = False
    """Whether the server may have done the request at an earlier attempt, whose answer was lost."""


class ConnectionFailed(LonghandError):
    """Raised when the server cannot be reached, or when a connection was lost; `__cause__` is httpx's error."""

    def __init__(self, message: str, *, was_sent: bool = False, is_timeout: bool = False) -> None:
        """Create the error.

        Args:
            message: What happened.
            was_sent: Whether the server may have received the request.
            is_timeout: Whether the connection stands, and the server sent nothing for the client's timeout_s.
        """
        super().__init__(message)
        self.was_sent = was_sent
        self.is_timeout = is_timeout


class InvalidResponse(LonghandError):
    """Raised when an answer is not one of this API."""


class APIError(LonghandError):
    """The server's error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        code: str = "",
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Create the error.

        Args:
            message: The server's.
            status: The HTTP status; of an error in a stream, the one that its code has.
            code: The error's name in the API (docs/api.md, Errors); empty if a gateway answered, and not the service.
            retry_after_s: When a retry can succeed; None: not by waiting.
            details: What else the error's body has.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.details: dict[str, Any] = dict(details or {})
        self.field: str | None = self.details.get("field")
        self.value: Any = self.details.get("value")
        self.expected: str | None = self.details.get("expected")


class InvalidRequest(APIError):
    """Raised when a value cannot be used."""


class Unauthorized(APIError):
    """Raised when a key is required, and none or a wrong one was sent."""


class Forbidden(APIError):
    """Raised when this key, or a client at this address, may not do this."""


class NotFound(APIError):
    """Raised when there is no such session, turn, job, model or corpus."""


class Conflict(APIError):
    """Raised when a session, job, model or corpus is not in the state that the request expects."""


class Overloaded(APIError):
    """Raised when the server is at capacity, or when this client sends requests too often."""


class Unavailable(APIError):
    """Raised when something that the server needs is missing."""


class TimedOut(APIError):
    """Raised when timeout_s or the server's limit passed before the prompt was read."""


class ServerError(APIError):
    """Raised when the server or a gateway failed."""


_CLASSES: Mapping[int, type[APIError]] = {
    400: InvalidRequest,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: Overloaded,
    503: Unavailable,
    504: TimedOut,
}
STREAM_STATUSES: Mapping[str, int] = {
    "invalid_request": 422,
    "model_changed": 409,
    "session_conflict": 409,
    "turn_interrupted": 409,
    "unreadable_job": 409,
    "unreadable_session": 409,
    "overloaded": 429,
    "queue_full": 429,
    "rate_limited": 429,
    "draining": 503,
    "no_model": 503,
    "storage_failed": 503,
    "store_unavailable": 503,
    "timeout": 504,
    "storage_full": 507,
    "unknown_job": 404,
    "unknown_session": 404,
}
"""The status that an error's code has, for errors in a stream: their status was sent before they happened."""
_STREAM_RETRIES = frozenset({"draining", "no_model", "overloaded", "queue_full", "rate_limited", "store_unavailable"})


def connection_failed(error: httpx.RequestError, url: httpx.URL) -> ConnectionFailed:
    """Translate an error of httpx."""
    was_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    is_timeout = isinstance(error, httpx.ReadTimeout)
    what = "the server sent nothing for too long" if is_timeout else str(error) or type(error).__name__
    failed = ConnectionFailed(f"{_origin(url)}: {what}", was_sent=was_sent, is_timeout=is_timeout)
    failed.__cause__ = error
    return failed


def response_error(response: httpx.Response) -> APIError:
    """Make the error of a response whose body was read."""
    retry_after_s = _retry_after(response.headers.get("Retry-After", ""))
    body = _error_body(response.text)
    if body is None:
        text = " ".join(response.text.split())[:QUOTED_CHARS] or response.reason_phrase
        message = f"{_origin(response.url)} answered {response.status_code}: {text}"
        body = {"message": message, "code": ""}
    status = response.status_code
    details = {name: value for name, value in body.items() if name not in _RESERVED}
    kind = _CLASSES.get(status, ServerError)
    return kind(body["message"], status=status, code=body["code"], retry_after_s=retry_after_s, details=details)


def stream_error(data: str) -> LonghandError:
    """Make the error of a stream's last event."""
    body = _error_body(data)
    if body is None:
        return InvalidResponse(f"the stream's event `error` has no error: {data[:QUOTED_CHARS]}")
    code = body["code"]
    status = STREAM_STATUSES.get(code, 500)
    details = {name: value for name, value in body.items() if name not in _RESERVED}
    retry_after_s = 1.0 if code in _STREAM_RETRIES else None
    kind = _CLASSES.get(status, ServerError)
    return kind(body["message"], status=status, code=code, retry_after_s=retry_after_s, details=details)


_RESERVED = ("message", "code", "status", "retry_after_s")


def _error_body(text: str) -> dict[str, Any] | None:
    """The error in a body of this API, or None."""
    try:
        body = json.loads(text)["error"]
        return {**body, "message": str(body["message"]), "code": str(body["code"])}
    except (ValueError, KeyError, TypeError):
        return None


def _retry_after(value: str) -> float | None:
    """The header's value in seconds: a number, or a date, as some gateways send it."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _origin(url: httpx.URL) -> str:
    """The server's address, without the path and without credentials."""
    return str(url.copy_with(path="/", query=None, username=None, password=None)).rstrip("/")
