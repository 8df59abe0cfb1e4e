"""The record of a job in Redis: its dataclasses, one hash of JSON values and one capped stream of events.

    lh:jobs              job ids by submission time; records of ended jobs beyond the newest MAX_RECORDS are deleted
    lh:job:{id}          hash: request, created_at, attempt, started_at, progress, validations, samples, notes, advice,
                         result, ended_at, error, cancel, is_bootstrap
    lh:job:{id}:events   stream of (name, data); a client resumes after the id of the last event that it has

A training must not fail because Redis is unreachable for a moment. Methods that a running training calls suppress
connection errors: that one write is lost and the training continues.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self, TypeVar

import redis

from model.errors import short_repr
from model.evaluation.validation_sample import Validation
from service.errors import UnreadableJob

JsonObject = dict[str, Any]
T = TypeVar("T")
_DAMAGE = (ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What reading a record that somebody else wrote may raise."""

JOBS_KEY = "lh:jobs"
OUT_OF_MEMORY = (
    "the training ran out of memory; another attempt would, too: give the trainer more memory, or train a smaller "
    "network (n_hidden, n_layers), a smaller batch_size or a shorter seq_length"
)
MAX_RECORDS = 50
MAX_EVENTS = 2000
MAX_VALIDATIONS, MAX_SAMPLES, MAX_NOTES = 500, 12, 50
_JSON_FIELDS = ("request", "progress", "validations", "samples", "notes", "advice", "result")

# Names in records and events that were written before the fields got their present names.
_OLD_FIELDS = {
    "looks": "validations",
    "is_first": "is_bootstrap",
    "created": "created_at",
    "started": "started_at",
    "ended": "ended_at",
}
_OLD_EVENTS = {"look": "validation"}
_OLD_KEYS = {
    "progress": {"left_s": "remaining_s"},
    "validation": {"train": "train_loss", "val": "val_loss"},
    "decision": {
        "new": "new_val_loss",
        "before": "promoted_val_loss",
        "before_id": "promoted_id",
        "left_out": "skipped_characters",
    },
}
_OLD_PROTOCOLS = {"a": "windowed", "b": "stateful", "c": "dynamic"}


class JobState(StrEnum):
    """The states of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        """Whether the job has not ended."""
        return self in LIVE_STATES


LIVE_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a new checkpoint is promoted, and why. The numbers are given where two models were compared."""

    promoted: bool
    reason: str
    protocol: str | None = None  # of the two losses: windowed, stateful or dynamic
    characters: int | None = None  # validation characters that both models were evaluated on
    skipped_characters: int | None = None  # left out because the promoted model does not know them
    new_val_loss: float | None = None  # nats per character
    promoted_val_loss: float | None = None
    promoted_id: str | None = None  # fingerprint of the model that was promoted before

    def as_dict(self) -> JsonObject:
        """Return the fields that have a value."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class JobResult:
    """The result of a job that finished or was cancelled."""

    cancelled: bool
    checkpoint: JsonObject | None = None  # the registry's summary of the best checkpoint, if there is one
    decision: Decision | None = None

    def as_dict(self) -> JsonObject:
        """Return the result as JSON values."""
        decision = self.decision.as_dict() if self.decision is not None else None
        return {"cancelled": self.cancelled, "checkpoint": self.checkpoint, "decision": decision}

    @classmethod
    def from_dict(cls, value: JsonObject) -> Self:
        """Read what `as_dict` made, now or before the fields were renamed."""
        checkpoint, decision = value["checkpoint"], value["decision"]
        if checkpoint is not None:
            checkpoint = _with_current_protocol(_typed(dict, checkpoint), "val_protocol")
        if decision is not None:
            decision = Decision(**_with_current_protocol(_with_current_keys("decision", decision), "protocol"))
            _typed(bool, decision.promoted), _typed(str, decision.reason)
        return cls(_typed(bool, value["cancelled"]), checkpoint, decision)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """The fields of a job's record. Times are Unix seconds; progress, samples and advice are as clients get them."""

    request: JsonObject
    created_at: float
    attempt: int = 0
    started_at: float | None = None
    ended_at: float | None = None
    cancel_requested: bool = False
    progress: JsonObject | None = None
    validations: list[Validation] = field(default_factory=list)
    samples: list[JsonObject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    advice: list[JsonObject] = field(default_factory=list)
    result: JobResult | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job: its record, and what the queue knows of it."""

    job_id: str
    state: JobState
    position: int | None  # jobs that are queued before it; None when it is not queued
    error: str | None  # why it failed
    record: StoredJob

    @property
    def is_live(self) -> bool:
        """Whether the job has not ended."""
        return self.state.is_live

    def summary(self) -> JsonObject:
        """Return the job as JSON values, without the lists that grow while it runs."""
        record = self.record
        return {
            "job_id": self.job_id,
            "state": self.state,
            "cancelling": record.cancel_requested and self.is_live,
            "request": record.request,
            "attempt": record.attempt,
            "position": self.position,
            "created_at": record.created_at,
            "started_at": record.started_at,
            "ended_at": record.ended_at,
            "progress": record.progress,
            "result": record.result.as_dict() if record.result is not None else None,
            "error": self.error,
        }

    def as_dict(self) -> JsonObject:
        """Return the whole job as JSON values."""
        record = self.record
        lists = {"validations": [asdict(v) for v in record.validations], "samples": record.samples}
        return {**self.summary(), **lists, "notes": record.notes, "advice": record.advice}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """An event of a job's stream."""

    id: str  # of the Redis stream: a client resumes after it
    name: str  # progress, validation, sample, promoted or note
    data: JsonObject


class JobRecord:
    """One job's record in Redis.

    `create`, `read`, `events`, `request_cancel`, `begin_attempt`, `set_if_absent` and `finish` raise redis.RedisError.
    The other methods suppress connection errors.
    """

    def __init__(self, client: redis.Redis, job_id: str) -> None:
        """Name the record; it need not exist."""
        self._client = client
        self.job_id = job_id
        self._key = record_key(job_id)
        self._events_key = f"{self._key}:events"

    def create(self, request: JsonObject) -> None:
        """Write a new record."""
        now = time.time()
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, mapping={"created_at": now, "request": json.dumps(request), "attempt": 0})
            pipe.zadd(JOBS_KEY, {self.job_id: now})
            pipe.execute()

    def read(self) -> StoredJob | None:
        """Return the record, or None if it does not exist.

        Raises:
            UnreadableJob: It is damaged.
        """
        raw: Any = self._client.hgetall(self._key)
        if not raw:
            return None
        try:
            return _stored_job({k.decode(): v.decode() for k, v in raw.items()})
        except _DAMAGE as e:
            problem = f"{type(e).__name__}: {e}"
            raise UnreadableJob(f"job {self.job_id}: its record cannot be read ({problem})") from e

    def events(self, after: str, wait_ms: int) -> list[JobEvent]:
        """Return the events after this id. If there are none, wait up to `wait_ms` for one.

        One that is damaged comes as a note that says so: a client resumes after the last id that it has.
        """
        streams: Any = self._client.xread({self._events_key: after}, count=200, block=wait_ms)
        return [_event(id.decode(), fields) for _, entries in streams or [] for id, fields in entries]

    def request_cancel(self) -> None:
        """Ask the process that trains to end the job."""
        self._client.hset(self._key, "cancel", "1")

    @property
    def cancel_requested(self) -> bool:
        """Whether the job is to be cancelled. False while Redis is unreachable."""
        with suppress_redis_errors():
            return bool(self._client.hexists(self._key, "cancel"))
        return False

    def begin_attempt(self) -> int:
        """Count an attempt and return its number, from 1."""
        attempt: Any = self._client.hincrby(self._key, "attempt", 1)
        self._client.hset(self._key, "started_at", time.time())
        return int(attempt)

    def set_if_absent(self, name: str, value: bool) -> bool:
        """Set a flag that an earlier attempt may have set, and return the value that it has now."""
        for old in (o for o, new in _OLD_FIELDS.items() if new == name):
            earlier: Any = self._client.hget(self._key, old)
            value = value if earlier is None else bool(int(earlier))
        self._client.hsetnx(self._key, name, int(value))
        stored: Any = self._client.hget(self._key, name)
        return bool(int(stored))

    def put(self, **fields: Any) -> None:
        """Write fields of the record."""
        encoded: dict[Any, Any] = {k: json.dumps(v) if k in _JSON_FIELDS else str(v) for k, v in fields.items()}
        with suppress_redis_errors():
            self._client.hset(self._key, mapping=encoded)

    def emit(self, name: str, data: JsonObject) -> None:
        """Append an event to the job's stream."""
        with suppress_redis_errors():
            self._client.xadd(self._events_key, {"name": name, "data": json.dumps(data)}, maxlen=MAX_EVENTS)

    def note(self, text: str) -> None:
        """Append a note to the record and emit it."""
        with suppress_redis_errors():
            notes: Any = self._client.hget(self._key, "notes")
            self.put(notes=[*json.loads(notes or "[]"), text][-MAX_NOTES:])
        self.emit("note", {"text": text})

    def fail(self, reason: str) -> None:
        """Store why the last attempt failed."""
        self.put(error=reason)

    def finish(self, result: JobResult) -> None:
        """Store the result and clear the error of an earlier attempt."""
        self._client.hset(self._key, mapping={"result": json.dumps(result.as_dict()), "ended_at": time.time()})
        self._client.hdel(self._key, "error")


def remove_old_records(client: redis.Redis, is_live: Callable[[str], bool]) -> None:
    """Delete the oldest records, but for those of jobs that have not ended, to leave room for one of MAX_RECORDS.

    Args:
        client: The Redis.
        is_live: Tells whether the job with this id waits or runs.
    """
    oldest: Any = client.zrange(JOBS_KEY, 0, -MAX_RECORDS)
    for member in oldest:
        job_id = member.decode(errors="replace")
        if not is_live(job_id):
            client.delete(record_key(job_id), f"{record_key(job_id)}:events")
            client.zrem(JOBS_KEY, member)


def record_key(job_id: str) -> str:
    """Return the Redis key of a job's record."""
    return f"lh:job:{job_id}"


@contextlib.contextmanager
def suppress_redis_errors() -> Iterator[None]:
    """Ignore that Redis is unreachable, slow or full."""
    with contextlib.suppress(redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError):
        yield


def _stored_job(raw: dict[str, str]) -> StoredJob:
    fields: JsonObject = {new: raw[old] for old, new in _OLD_FIELDS.items() if old in raw} | raw
    fields |= {name: _json(fields[name]) for name in _JSON_FIELDS if name in fields}
    progress, result = fields.get("progress"), fields.get("result")
    return StoredJob(
        request=_typed(dict, fields["request"]),
        created_at=_finite(fields["created_at"]),
        attempt=int(fields["attempt"]),
        started_at=_finite(fields["started_at"]) if "started_at" in fields else None,
        ended_at=_finite(fields["ended_at"]) if "ended_at" in fields else None,
        cancel_requested="cancel" in fields,
        progress=_with_current_keys("progress", _typed(dict, progress)) if progress is not None else None,
        validations=[_validation(v) for v in _typed(list, fields.get("validations", []))],
        samples=[_typed(dict, sample) for sample in _typed(list, fields.get("samples", []))],
        notes=[_typed(str, note) for note in _typed(list, fields.get("notes", []))],
        advice=[_typed(dict, advice) for advice in _typed(list, fields.get("advice", []))],
        result=JobResult.from_dict(_typed(dict, result)) if result is not None else None,
        error=fields.get("error"),
    )


def _validation(stored: Any) -> Validation:
    values = _with_current_keys("validation", _typed(dict, stored))
    per_item = values.get("val_loss_per_item", 0.0)
    numbers = [
        *(value for name, value in values.items() if name != "val_loss_per_item"),
        0 if per_item is None else per_item,
    ]
    if not all(isinstance(value, int | float) for value in numbers):
        raise TypeError(f"got the validation {short_repr(stored)}, expected numbers")
    return Validation(**values)


def _event(id: str, fields: dict[bytes, bytes]) -> JobEvent:
    try:
        name = fields[b"name"].decode()
        data = _with_current_keys(_OLD_EVENTS.get(name, name), _typed(dict, _json(fields[b"data"])))
    except _DAMAGE as e:
        return JobEvent(id, "note", {"text": f"event {id} cannot be read ({type(e).__name__})"})
    return JobEvent(id, _OLD_EVENTS.get(name, name), data)


def _json(text: str | bytes) -> Any:
    """Parse JSON without the NaN and Infinity that Python also reads and no client can."""
    value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
        json.dumps(value, ensure_ascii=False).encode()  # an error for half of a pair of surrogates
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str | float) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _typed(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"got {short_repr(value)}, expected {kind.__name__}")
    return value


def _with_current_protocol(data: JsonObject, key: str) -> JsonObject:
    return {**data, key: _OLD_PROTOCOLS.get(data[key], data[key])} if key in data else data


def _with_current_keys(kind: str, data: JsonObject) -> JsonObject:
    return {_OLD_KEYS.get(kind, {}).get(key, key): value for key, value in data.items()}
