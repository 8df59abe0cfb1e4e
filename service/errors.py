"""Everything that the service raises on purpose, and the one place that turns it into an answer.

ServiceError
├── BadRequest           422  a field is wrong: `field` names it
│   ├── MalformedBody    400  the body is not JSON at all
│   ├── BodyTooLarge     413
│   └── WrongMediaType   415
├── Unauthorized         401  a key is asked for, and none or a wrong one was sent
├── Forbidden            403  not with this key, or not from there
├── UnknownSession       404  no such session, or it has expired
├── UnknownJob           404  no such job, or it is long over
├── UnknownModel         404  no such checkpoint
├── UnknownCorpus        404  no such corpus
├── NoTurn               404  the session remembers no turn to go on with
├── SessionConflict      409  someone else is writing this session, or it is not where it should be
│   ├── TurnInterrupted  409  its last turn was cut off: resume it, or say with `position` what you have
│   └── ModelChanged     409  its state was made by another model
├── JobHasEnded          409  what has ended cannot be cancelled
├── ModelConflict        409  this checkpoint cannot be promoted, or there is none to go back to
├── CorpusConflict       409  this corpus is there already, or cannot be changed
├── Overloaded           429  every slot and every place in the line is taken
│   ├── JobsFull         429  every place in the line of trainings is taken
│   └── TooMany          429  this client asks too often
├── WrongCell            409  the served model has other gates than those that were asked for
├── NoModel              503  no checkpoint has been promoted yet
├── StoreUnavailable            503  the session store does not answer
├── Draining             503  this worker is stopping
└── TimedOut             504  the request's own timeout_s was over before anything was written

Each class carries its status and its code; where trying again helps, `retry_after_s` says when. The body is
{"error": {"code", "message", and what the error adds}}.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

log = logging.getLogger(__name__)


class ServiceError(Exception):
    """Base of the tree; raised itself only for what has no name."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "message": str(self), **self.details}


class BadRequest(ServiceError):
    """Raised when a field has a value that cannot be used; details carry `field`, `value`, `expected`."""

    status, code = 422, "invalid_request"


class MalformedBody(BadRequest):
    """Raised when the body is not a JSON object."""

    status, code = 400, "malformed_body"


class BodyTooLarge(BadRequest):
    """Raised when the body is larger than MAX_BODY_BYTES."""

    status, code = 413, "body_too_large"


class WrongMediaType(BadRequest):
    """Raised when the body is not sent as application/json."""

    status, code = 415, "wrong_media_type"


class Unauthorized(ServiceError):
    """Raised when a key is asked for, and none or a wrong one was sent."""

    status, code = 401, "unauthorized"


class Forbidden(ServiceError):
    """Raised when this may not be done with this key, or not from there."""

    status, code = 403, "forbidden"


class UnknownSession(ServiceError):
    """Raised when a session does not exist, or no longer."""

    status, code = 404, "unknown_session"


class UnknownJob(ServiceError):
    """Raised when a job does not exist, or is long over."""

    status, code = 404, "unknown_job"


class UnknownModel(ServiceError):
    """Raised when no checkpoint has this fingerprint."""

    status, code = 404, "unknown_model"


class UnknownCorpus(ServiceError):
    """Raised when no corpus has this name."""

    status, code = 404, "unknown_corpus"


class SessionConflict(ServiceError):
    """Raised when a session is being written by another request, or was; details carry `position`."""

    status, code = 409, "session_conflict"


class JobHasEnded(ServiceError):
    """Raised when a job that has ended is to be cancelled; details carry `state`."""

    status, code = 409, "job_has_ended"


class ModelConflict(ServiceError):
    """Raised when a checkpoint cannot be promoted, or there is none to go back to."""

    status, code = 409, "model_conflict"


class CorpusConflict(ServiceError):
    """Raised when a corpus is there already, or is one that cannot be changed."""

    status, code = 409, "corpus_conflict"


class WrongCell(ServiceError):
    """Raised when the gates of a network that is no lstm are asked for."""

    status, code = 409, "wrong_cell"


class NoTurn(ServiceError):
    """Raised when a session remembers no turn that could be gone on with."""

    status, code = 404, "no_turn"


class TurnInterrupted(SessionConflict):
    """Raised when a session's last turn was cut off, so that only its client knows what was shown."""

    code = "turn_interrupted"


class ModelChanged(SessionConflict):
    """Raised when a state was made by another model or arithmetic and may not, or cannot, be made anew."""

    code = "model_changed"


class Overloaded(ServiceError):
    """Raised when every slot and every place in the line is taken."""

    status, code, retry_after_s = 429, "overloaded", 1


class JobsFull(Overloaded):
    """Raised when every place in the line of trainings is taken."""

    code, retry_after_s = "jobs_full", 60


class TooMany(Overloaded):
    """Raised when a client asks more often than it may; its `retry_after_s` is its own."""

    code = "too_many_requests"


class NoModel(ServiceError):
    """Raised when no checkpoint has been promoted yet."""

    status, code, retry_after_s = 503, "no_model", 5


class StoreUnavailable(ServiceError):
    """Raised when the session store does not answer."""

    status, code, retry_after_s = 503, "store_unavailable", 2


class Draining(ServiceError):
    """Raised when this worker is stopping."""

    status, code, retry_after_s = 503, "draining", 1


class TimedOut(ServiceError):
    """Raised when the request's own timeout_s was over before anything was written."""

    status, code = 504, "timeout"


def register(app: Flask) -> None:
    """Let the app answer every error in one form."""

    @app.errorhandler(ServiceError)
    def _ours(error: ServiceError) -> Response:
        return answer(error)

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        code = (error.name or "error").lower().replace(" ", "_")
        response = jsonify({"error": {"code": code, "message": error.description}})
        response.status_code = error.code or 500
        if error.get_headers():
            response.headers.extend({k: v for k, v in error.get_headers() if k == "Allow"})
        return response

    @app.errorhandler(Exception)
    def _bug(error: Exception) -> Response:
        log.exception("an error that is ours")
        return answer(ServiceError("an error on our side; it has been logged"))


def answer(error: ServiceError) -> Response:
    response = jsonify({"error": error.as_dict()})
    response.status_code = error.status
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge):
        response.headers["Connection"] = "close"  # or the rest of the body would be read as the next request
    return response
