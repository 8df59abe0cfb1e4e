"""What is known of a job, kept in Redis: small JSON values in one hash, and a capped stream of events.

    lh:jobs              ids by the time of their submission; the oldest beyond MAX_RECORDS are forgotten
    lh:job:{id}          created, request, attempt, progress, looks, samples, notes, advice, result, error, cancel
    lh:job:{id}:events   a stream: name, data; its ids are what a reader resumes from

Whoever trains must not fail because Redis is away for a moment: what is written meanwhile is lost, and that is all.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import redis

JOBS = "lh:jobs"
MAX_RECORDS = 50
MAX_EVENTS = 2000
MAX_LOOKS, MAX_SAMPLES, MAX_NOTES = 500, 12, 50
_JSON = ("request", "progress", "looks", "samples", "notes", "advice", "result")


def key_of(job_id: str) -> str:
    return f"lh:job:{job_id}"


class Record:
    """One job's record. The writing methods never raise what Redis does; the reading ones do."""

    def __init__(self, client: redis.Redis, job_id: str) -> None:
        self._client = client
        self.job_id = job_id
        self._key = key_of(job_id)
        self._events = f"{self._key}:events"

    def create(self, request: dict[str, Any]) -> None:
        """Put the record on the list; raises what Redis does."""
        now = time.time()
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, mapping={"created": now, "request": json.dumps(request), "attempt": 0})
            pipe.zadd(JOBS, {self.job_id: now})
            pipe.zrange(JOBS, 0, -MAX_RECORDS - 1)
            old: Any = pipe.execute()[-1]
        for job_id in (i.decode() for i in old):
            self._client.delete(key_of(job_id), f"{key_of(job_id)}:events")
            self._client.zrem(JOBS, job_id)

    def read(self) -> dict[str, Any] | None:
        """All fields, or None when there is no such record."""
        raw: Any = self._client.hgetall(self._key)
        if not raw:
            return None
        fields: dict[str, Any] = {k.decode(): v.decode() for k, v in raw.items()}
        return {k: json.loads(v) if k in _JSON else v for k, v in fields.items()}

    def events(self, after: str, wait_ms: int) -> list[tuple[str, str, dict[str, Any]]]:
        """The events after this id: (id, name, data); waits for a first one."""
        found: Any = self._client.xread({self._events: after}, count=200, block=wait_ms)
        return [(id.decode(), f[b"name"].decode(), json.loads(f[b"data"])) for _, each in found or [] for id, f in each]

    def ask_to_cancel(self) -> None:
        """Leave word for whoever trains; raises what Redis does."""
        self._client.hset(self._key, "cancel", "1")

    @property
    def is_cancelled(self) -> bool:
        """Whether someone asked for it, as far as Redis says."""
        with suppress_redis_errors():
            return bool(self._client.hexists(self._key, "cancel"))
        return False

    def begin(self) -> int:
        """Count an attempt; how many that makes. Raises what Redis does."""
        attempt: Any = self._client.hincrby(self._key, "attempt", 1)
        self._client.hset(self._key, "started", time.time())
        return int(attempt)

    def once(self, field: str, value: bool) -> bool:
        """Set a fact of the job at its first attempt; what it was set to then. Raises what Redis does."""
        self._client.hsetnx(self._key, field, int(value))
        found: Any = self._client.hget(self._key, field)
        return bool(int(found))

    def put(self, **fields: Any) -> None:
        with suppress_redis_errors():
            self._client.hset(
                self._key, mapping={k: json.dumps(v) if k in _JSON else str(v) for k, v in fields.items()}
            )

    def emit(self, name: str, data: dict[str, Any]) -> None:
        """Tell those who follow the job."""
        with suppress_redis_errors():
            self._client.xadd(self._events, {"name": name, "data": json.dumps(data)}, maxlen=MAX_EVENTS)

    def note(self, text: str) -> None:
        """Say something in words: kept in the record and told to followers."""
        with suppress_redis_errors():
            found: Any = self._client.hget(self._key, "notes")
            self.put(notes=[*json.loads(found or "[]"), text][-MAX_NOTES:])
        self.emit("note", {"text": text})

    def fail(self, reason: str) -> None:
        """Why it failed, or the last attempt did."""
        self.put(error=reason)

    def end(self, result: dict[str, Any]) -> None:
        """The result; raises what Redis does, for a job without one would be done for nothing."""
        self._client.hset(self._key, mapping={"result": json.dumps(result), "ended": time.time()})
        self._client.hdel(self._key, "error")


@contextlib.contextmanager
def suppress_redis_errors() -> Iterator[None]:
    with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
        yield
