"""POST /retrain, and /jobs: trainings are put in the line, looked at, followed and cancelled.

A job's events, as server-sent ones; their ids are where a reader that lost them goes on (Last-Event-ID):

event: progress  data: step, total_steps, train_loss, best_val_loss, lr, chars_per_s, elapsed_s, left_s
event: look      data: step, elapsed_s, train, val, is_best        a look at the validation text
event: sample    data: step, text                                  what the best model so far writes
event: promoted  data: name                                        while there was no model before
event: note      data: text
event: done      data: the job, as GET /jobs/{id} tells it         the end
event: error     data: {"error": {"code", "message"}}           or this end, when the worker stops or Redis is away
: ...            a comment, when nothing happened for a while
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest, Draining, Overloaded, ServiceError, StoreUnavailable
from service.jobs.queue import JobQueue
from service.jobs.request import check
from service.routes.body import read_body
from service.routes.sse import HEARTBEAT, Heartbeat, encode_event, event_stream_response
from service.schemas import RetrainRequest
from service.store.corpora import Corpora

MAX_FOLLOWERS = 8  # of a process: each holds a thread
_EVENT_ID = r"[0-9]{1,20}(-[0-9]{1,20})?"
_LIVE = ("queued", "running")


def blueprint(queue: JobQueue | None, corpora: Corpora, is_leaving: Callable[[], bool]) -> Blueprint:
    routes = Blueprint("jobs", __name__)
    followers = threading.BoundedSemaphore(MAX_FOLLOWERS)

    def line() -> JobQueue:
        if queue is None:
            raise StoreUnavailable("trainings need a queue: set REDIS_URL, to one that is no cluster")
        return queue

    @routes.post("/retrain")
    def retrain() -> tuple[Response, int, dict[str, str]]:
        wanted = check(read_body(RetrainRequest), corpora)
        job_id = line().submit(wanted)
        found = line().get(job_id)
        told = {k: found[k] for k in ("job_id", "state", "position", "request")}
        return jsonify({**told, "job": f"/jobs/{job_id}"}), 202, {"Location": f"/jobs/{job_id}"}

    @routes.get("/jobs")
    def listing() -> Response:
        return jsonify(jobs=line().listing())

    @routes.get("/jobs/<job_id:job_id>")
    def get(job_id: str) -> Response:
        return jsonify(line().get(job_id))

    @routes.delete("/jobs/<job_id:job_id>")
    def cancel(job_id: str) -> tuple[Response, int]:
        return jsonify(line().cancel(job_id)), 202

    @routes.get("/jobs/<job_id:job_id>/events")
    def events(job_id: str) -> Response:
        after = request.headers.get("Last-Event-ID")
        if after is not None and not re.fullmatch(_EVENT_ID, after):
            raise BadRequest("Last-Event-ID", after, f"the id of an event, {_EVENT_ID}")
        found = line().get(job_id)
        if after is not None and found["state"] not in _LIVE and not line().events(job_id, after, wait_ms=1):
            return Response(status=204)  # all was told: a browser's EventSource asks no more
        if not followers.acquire(blocking=False):
            raise Overloaded(f"all {MAX_FOLLOWERS} places to follow jobs are taken; GET /jobs/{job_id} tells the same")
        return event_stream_response(_Events(line(), job_id, after or "0", followers, is_leaving))

    return routes


class _Events:
    """The body of a followed job. Its `close` is called by the server however it ends, begun or not."""

    def __init__(
        self,
        queue: JobQueue,
        job_id: str,
        after: str,
        place: threading.BoundedSemaphore,
        is_leaving: Callable[[], bool],
    ) -> None:
        self._queue, self._job_id, self._after, self._is_leaving = queue, job_id, after, is_leaving
        self._place: threading.BoundedSemaphore | None = place

    def close(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.release()

    def __iter__(self) -> Iterator[bytes]:
        heartbeat = Heartbeat()
        try:
            while True:
                if self._is_leaving():
                    raise Draining("this worker is stopping; go on with the events on another")
                ended = self._queue.get(self._job_id)["state"] not in _LIVE  # looked at first: no event comes after it
                for id, name, data in (found := self._queue.events(self._job_id, self._after, 1 if ended else 1000)):
                    self._after = id
                    yield encode_event(data, name=name, id=id)
                    heartbeat.sent()
                if ended and not found:
                    yield encode_event(self._queue.get(self._job_id), name="done")
                    return
                if heartbeat.is_due():
                    yield HEARTBEAT
                    heartbeat.sent()
        except ServiceError as e:
            yield encode_event({"error": e.as_dict()}, name="error")
