"""Render a job's events as lines for a terminal: the validation losses as they fall, and samples of the model."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from model.evaluation.protocols import bits
from service.jobs.queue import JobQueue
from service.jobs.record import Job, JobEvent, JobState

_BAR_CHARS, _BAR_NATS = 24, 4.0
_SAMPLE_WIDTH, _SAMPLE_LINES = 100, 2


def follow_job(queue: JobQueue, job_id: str) -> Iterator[str]:
    """Yield lines for a terminal while a job runs, and one when it has ended.

    Raises:
        UnknownJob: There is no record of this job.
        StoreUnavailable: Redis does not answer.
    """
    for batch in queue.follow(job_id):
        for event in batch:
            yield from render_event(event)
    yield render_end(queue.get(job_id))


def render_event(event: JobEvent) -> list[str]:
    """Return the lines of one event; progress between validations has none."""
    data = event.data
    if event.name == "validation":
        bar = "#" * max(1, round(_BAR_CHARS * min(1.0, data["val_loss"] / _BAR_NATS)))
        best = "  (best)" if data["is_best"] else ""
        return [
            f"train   {data['elapsed_s']:5.0f} s  step {data['step']:>6,}  validation {data['val_loss']:.3f} nats "
            f"{bits(data['val_loss']):.3f} bits  {bar:<{_BAR_CHARS}}{best}"
        ]
    if event.name == "sample":
        lines = textwrap.wrap(" ".join(data["text"].split()), _SAMPLE_WIDTH)
        return [f"        | {line}" for line in lines[:_SAMPLE_LINES]]
    if event.name == "promoted":
        return [f"serve   {data['name']} is served now; training continues and better checkpoints replace it"]
    if event.name == "note":
        return [f"train   {data['text']}"]
    return []


def render_end(job: Job) -> str:
    """Return the line of a job that has ended."""
    if job.state is JobState.FAILED:
        return f"train   failed: {job.error}"
    result = job.record.result
    if result is None or result.checkpoint is None:
        return f"train   {job.state}"
    nats = result.checkpoint["val_loss"]
    return f"train   {job.state}, validation {nats:.4f} nats = {bits(nats):.4f} bits per character"
