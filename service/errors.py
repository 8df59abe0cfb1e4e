"""Every error that the service raises on purpose. It knows no Flask; routes/error_responses.py makes the responses.

ServiceError
├── BadRequest             422  a value cannot be used: `field`, `value` and `expected` say which and why
│   ├── MalformedBody      400  the body is not a JSON object
│   ├── BodyTooLarge       413  the body is longer than the limit
│   ├── WrongMediaType     415  the body is not application/json
│   └── UnsupportedCell    409  the served model's cell type has no such gates
├── Unauthorized           401  a key is required, and none or a wrong one was sent
├── Forbidden              403  this key, or a client at this address, may not do this
│   └── ModelNotAllowed    403  this key may not use this model
├── UnknownSession         404  the session does not exist or has expired
├── UnknownJob             404  the job does not exist or its record has expired
├── UnknownModel           404  no model has this name, or no checkpoint has this id
├── UnknownReport          404  no report on this checkpoint has been made
├── UnknownCorpus          404  no corpus has this name
├── NoTurn                 404  the session has no turn that could be resumed
├── SessionConflict        409  another request writes the session, or the session is not at the requested position
│   ├── SessionBusy        409  another request writes the session
│   ├── TurnInterrupted    409  the session's last turn was interrupted: resume it or send `position`
│   ├── ModelChanged       409  the session was written by another model
│   └── UnreadableSession  409  the stored session was written in a layout that this version cannot read
├── UnreadableJob          409  the stored record of the job is damaged
├── KeyReused              409  the Idempotency-Key was used for another request
├── JobHasEnded            409  a job that has ended cannot be cancelled
├── ModelConflict          409  the checkpoint cannot be promoted, or there is none to roll back to
├── CorpusConflict         409  the corpus exists already or cannot be changed
├── Overloaded             429  the server is at capacity
│   ├── QueueFull          429  every slot and every place in the generation queue is taken
│   ├── JobQueueFull       429  the job queue is full
│   └── RateLimited        429  this client sends requests too often
├── NoModel                503  no model is served yet
├── StoreUnavailable       503  the session store does not answer
├── StorageFailed          503  a file cannot be written or read
├── Draining               503  this worker is shutting down
├── TimedOut               504  the time was up (timeout_s, at most MAX_GENERATION_S) before the prompt was read
└── StorageFull            507  the disk has no space left, or the quota is used up

Each class has its HTTP status and its code; `retry_after_s` says when a retry can succeed. The response body is
{"error": {"code", "message", and the attributes of the error}}.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

PROMPT_NOT_READ = "the request's time was up (timeout_s, at most MAX_GENERATION_S) before its prompt was read"
KEY_REUSED = "this Idempotency-Key was used for another request"
_QUOTED_CHARS = 80
_QUOTED_LIST_CHARS = 4000


class ClientDisconnected(Exception):
    """Raised when a request's client has left, so that nobody waits for the answer. Not an error: nobody reads it."""


class ServiceError(Exception):
    """Base of the tree. Raised itself only for a bug, as an internal error."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, retry_after_s: int | None = None, **details: Any) -> None:
        """Create the error.

        Args:
            message: What happened and what to do, in one line.
            retry_after_s: Replaces the class's value.
            details: Further values for the response body; they must be JSON.
        """
        # A message may repeat what cannot be sent, such as half of a pair of surrogates.
        super().__init__(message.encode(errors="backslashreplace").decode())
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the response body shows it."""
        return {"code": self.code, "message": str(self), **self.details}


class BadRequest(ServiceError):
    """Raised when a value cannot be used."""

    status, code = 422, "invalid_request"

    def __init__(self, field: str, value: Any, expected: str, *, problem: str = "") -> None:
        """Create the error and, from its parts, the message: `field: problem, expected ...`.

        Args:
            field: The name of the field, header or parameter.
            value: The value that was sent.
            expected: Which values are accepted.
            problem: What is wrong; without it, the message shows the value.
        """
        super().__init__(f"{field}: {problem or 'got ' + _shortened(value)}, expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected
        self.problem = problem
        self.more: list[BadRequest] = []  # the other values of the request that cannot be used

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the response body shows it; a long value is shortened."""
        answer = {**super().as_dict(), "field": self.field, "value": _as_json(self.value), "expected": self.expected}
        return answer | ({"more": [error.as_dict() for error in self.more]} if self.more else {})


class MalformedBody(BadRequest):
    """Raised when the body is not a JSON object."""

    status, code = 400, "malformed_body"


class BodyTooLarge(BadRequest):
    """Raised when the body is longer than the limit."""

    status, code = 413, "body_too_large"

    def __init__(self, limit: int, size: int | None = None) -> None:
        """Create the error.

        Args:
            limit: The most bytes of a body.
            size: The bytes of this one; None if the client did not send their number.
        """
        received = f"{size} bytes" if size is not None else "more"
        super().__init__("body", size, f"at most {limit} bytes", problem=f"got {received}")


class WrongMediaType(BadRequest):
    """Raised when the body is not sent as application/json."""

    status, code = 415, "wrong_media_type"


class UnsupportedCell(BadRequest):
    """Raised when the gates of a network that is not an LSTM are requested."""

    status, code = 409, "unsupported_cell"


class Unauthorized(ServiceError):
    """Raised when a key is required, and none or a wrong one was sent."""

    status, code = 401, "unauthorized"


class Forbidden(ServiceError):
    """Raised when this key, or a client at this address, may not do this."""

    status, code = 403, "forbidden"


class ModelNotAllowed(Forbidden):
    """Raised when this key is bound to other models."""

    code = "model_not_allowed"


class UnknownSession(ServiceError):
    """Raised when a session does not exist or has expired."""

    status, code = 404, "unknown_session"


class UnknownJob(ServiceError):
    """Raised when a job does not exist or its record has expired."""

    status, code = 404, "unknown_job"


class UnknownModel(ServiceError):
    """Raised when no model has this name, or no checkpoint has this id; details may contain `close` names."""

    status, code = 404, "unknown_model"


class UnknownReport(ServiceError):
    """Raised when no report on this checkpoint has been made."""

    status, code = 404, "unknown_report"


class UnknownCorpus(ServiceError):
    """Raised when no corpus has this name."""

    status, code = 404, "unknown_corpus"


class NoTurn(ServiceError):
    """Raised when a session has no turn that could be resumed."""

    status, code = 404, "no_turn"


class SessionConflict(ServiceError):
    """Raised when another request writes the session, or when the session is not where the request expects it."""

    status, code = 409, "session_conflict"


class SessionBusy(SessionConflict):
    """Raised when another request writes the session, so that this one can succeed later."""

    retry_after_s = 1


class TurnInterrupted(SessionConflict):
    """Raised when a session's last turn was interrupted, so that only its client knows how much was received."""

    code = "turn_interrupted"


class ModelChanged(SessionConflict):
    """Raised when a session was written by another model and may not, or cannot, be re-encoded."""

    code = "model_changed"


class UnreadableSession(SessionConflict):
    """Raised when a stored session has a layout that this version cannot read, or is damaged."""

    code = "unreadable_session"


class UnreadableJob(ServiceError):
    """Raised when the stored record of a job is damaged, or cannot be one of this version."""

    status, code = 409, "unreadable_job"


class KeyReused(ServiceError):
    """Raised when an Idempotency-Key was used for another request; details contain its `job`, if it is of one."""

    status, code = 409, "key_reused"


class JobHasEnded(ServiceError):
    """Raised when a job that has ended is to be cancelled; details contain `state`."""

    status, code = 409, "job_has_ended"


class ModelConflict(ServiceError):
    """Raised when a checkpoint cannot be promoted, or when there is none to roll back to."""

    status, code = 409, "model_conflict"

    @classmethod
    def of(cls, error: Exception, folder: Path) -> Self:
        """Return the error for clients of one about a folder's files: their names stay, the folder's path does not."""
        return cls(str(error).replace(f"{folder}/", "").replace(str(folder), "the folder of checkpoints"))


class CorpusConflict(ServiceError):
    """Raised when a corpus exists already or cannot be changed."""

    status, code = 409, "corpus_conflict"


class Overloaded(ServiceError):
    """Raised when the server is at capacity."""

    status, code, retry_after_s = 429, "overloaded", 1


class QueueFull(Overloaded):
    """Raised when every slot and every place in the generation queue is taken."""

    code = "queue_full"


class JobQueueFull(Overloaded):
    """Raised when the job queue is full."""

    code, retry_after_s = "job_queue_full", 60


class RateLimited(Overloaded):
    """Raised when a client sends requests more often than it may."""

    code = "rate_limited"


class NoModel(ServiceError):
    """Raised when no model is served yet; details contain `job` while the first model is trained."""

    status, code, retry_after_s = 503, "no_model", 5


class StoreUnavailable(ServiceError):
    """Raised when the session store does not answer."""

    status, code, retry_after_s = 503, "store_unavailable", 2


class StorageFailed(ServiceError):
    """Raised when a file cannot be written or read: a read-only disk, missing rights."""

    status, code = 503, "storage_failed"


class StorageFull(ServiceError):
    """Raised when the disk is full."""

    status, code = 507, "storage_full"


class Draining(ServiceError):
    """Raised when this worker is shutting down."""

    status, code, retry_after_s = 503, "draining", 1


class TimedOut(ServiceError):
    """Raised when the request's time was up (timeout_s, at most MAX_GENERATION_S) before its prompt was read."""

    status, code = 504, "timeout"


def _shortened(value: Any) -> str:
    """The value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= _QUOTED_CHARS else f"{text[:60]}... ({len(text)} characters)"


def _as_json(value: Any) -> Any:
    """The value itself where it is small and JSON has it, else as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = json.dumps(value, allow_nan=False)
    except (ValueError, TypeError):  # no JSON, or infinity somewhere inside
        return _shortened(value)
    is_small = len(text) <= (_QUOTED_LIST_CHARS if isinstance(value, list) else _QUOTED_CHARS)
    return value if is_small and not isinstance(value, dict) else _shortened(value)
