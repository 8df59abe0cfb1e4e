"""POST /retrain and /jobs: training jobs are submitted, listed, followed and cancelled.

GET /jobs/{id}/events streams a job's events. A client that lost the stream resumes with Last-Event-ID:

event: progress    data: step, total_steps, epochs, train_loss, best_val_loss, lr, chars_per_s, elapsed_s, remaining_s
event: validation  data: step, elapsed_s, train_loss, val_loss, is_best, val_loss_per_item
event: sample      data: step, text                              text of the model after this step
event: promoted    data: name                                    a bootstrap job promoted a better checkpoint
event: note        data: text
event: done        data: the job, as GET /jobs/{id} returns it   the last event
event: error       data: {"error": {"code", "message"}}          the last event if this server stops or Redis is away
: ...              a comment, sent when nothing happened for a while
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from flask import Blueprint, Response, jsonify, request

from service.errors import BadRequest, Draining, Overloaded, StoreUnavailable
from service.jobs.queue import JobQueue
from service.jobs.request import validate
from service.routes import audit
from service.routes.body import idempotency_key, no_content, read_body
from service.routes.sse import ClientConnection, encode_event, event_stream_head, event_stream_response
from service.schemas import RetrainRequest
from service.store.corpora import Corpora
from service.store.sessions import digest

MAX_FOLLOWERS = 8  # event streams of one process: each holds a thread
_EVENT_ID = r"[0-9]{1,20}(-[0-9]{1,20})?"


def blueprint(
    queue: JobQueue | None, corpora: Corpora, checkpoint_dir: Path, is_draining: Callable[[], bool]
) -> Blueprint:
    """Return the routes.

    Args:
        queue: The job queue; None if no Redis is configured, then every route answers 503.
        corpora: The texts that a request may name.
        checkpoint_dir: The folder of the promoted checkpoint.
        is_draining: Whether this process takes no more work; event streams end then.
    """
    routes = Blueprint("jobs", __name__)
    followers = threading.BoundedSemaphore(MAX_FOLLOWERS)

    def job_queue() -> JobQueue:
        if queue is None:
            raise StoreUnavailable("training jobs need a Redis: set REDIS_URL or JOBS_REDIS_URL to one, not a cluster")
        return queue

    @routes.post("/retrain")
    def retrain() -> tuple[Response, int, dict[str, str]]:
        job_request = validate(read_body(RetrainRequest), corpora, checkpoint_dir)
        key = idempotency_key()
        job = job_queue().get(job_queue().submit(job_request.as_dict(), digest(key) if key else ""))
        audit.record(f"queued the training {job.job_id} of the model {job_request.model}")
        address = f"/jobs/{job.job_id}"
        submitted = {"job_id": job.job_id, "state": job.state, "position": job.position, "request": job.record.request}
        return jsonify({**submitted, "job": address}), 202, {"Location": request.script_root + address}

    @routes.get("/jobs")
    def listing() -> Response:
        return jsonify(jobs=[job.summary() for job in job_queue().listing()])

    @routes.get("/jobs/<job_id:job_id>")
    def get(job_id: str) -> Response:
        return jsonify(job_queue().get(job_id).as_dict())

    @routes.delete("/jobs/<job_id:job_id>")
    def cancel(job_id: str) -> tuple[Response, int]:
        cancelled = job_queue().cancel(job_id).as_dict()
        audit.record(f"cancelled the training {job_id}")
        return jsonify(cancelled), 202

    @routes.get("/jobs/<job_id:job_id>/events")
    def events(job_id: str) -> Response:
        after = request.headers.get("Last-Event-ID")
        if after is not None and not re.fullmatch(_EVENT_ID, after):
            raise BadRequest("Last-Event-ID", after, f"the id of an event, {_EVENT_ID}")
        job = job_queue().get(job_id)
        if after is not None and not job.is_live and not job_queue().events(job_id, after, wait_ms=1):
            return no_content()  # nothing is left to send; on 204 an EventSource does not reconnect
        if request.method == "HEAD":  # no body is sent, so nothing would release a follower
            return event_stream_head()
        client, job_events = (
            ClientConnection(is_stream=True),
            _job_events(job_queue(), job_id, after or "0", is_draining),
        )
        if not followers.acquire(blocking=False):
            raise Overloaded(f"too many job event streams are open ({MAX_FOLLOWERS}); poll GET /jobs/{job_id} instead")
        return event_stream_response(job_events, client, followers.release)

    return routes


def _job_events(queue: JobQueue, job_id: str, after: str, is_draining: Callable[[], bool]) -> Iterator[bytes | None]:
    """Yield the events of a job after this one, and None before waiting for more."""
    yield None
    for batch in queue.follow(job_id, after):
        for event in batch:
            yield encode_event(event.data, name=event.name, id=event.id)
        if is_draining():
            raise Draining("this server is shutting down; reconnect and another one sends the next events")
        yield None
    yield encode_event(queue.get(job_id).as_dict(), name="done")
