"""The lines that a terminal shows of a job."""

from __future__ import annotations

import pytest

from service.jobs.record import Job, JobEvent, JobResult, JobState, JsonObject, StoredJob
from service.operations.console import render_end, render_event


@pytest.mark.parametrize(
    ("name", "data", "lines"),
    [
        (
            "validation",
            {"step": 1200, "elapsed_s": 3.4, "train_loss": 2.5, "val_loss": 2.0, "is_best": True},
            ["train       3 s  step  1,200  validation 2.000 nats 2.885 bits  ############              (best)"],
        ),
        ("sample", {"step": 1, "text": "a\n" * 150}, [f"        | {'a ' * 49}a", f"        | {'a ' * 49}a"]),
        ("note", {"text": "attempt 2"}, ["train   attempt 2"]),
        ("progress", {"step": 1}, []),
    ],
)
def test_events_are_rendered(name: str, data: JsonObject, lines: list[str]) -> None:
    """A validation is a bar of its loss, a sample at most two lines; progress in between has none."""
    assert [line.rstrip() for line in render_event(JobEvent("1-0", name, data))] == lines


def test_the_promoted_checkpoint_is_named() -> None:
    """A user at the terminal sees that the service generates now."""
    (line,) = render_event(JobEvent("1-0", "promoted", {"name": "val2.0-step000001.safetensors"}))
    assert line.startswith("serve   val2.0-step000001.safetensors is served now")


@pytest.mark.parametrize(
    ("state", "error", "result", "line"),
    [
        (JobState.FAILED, "the loss is not a number", None, "train   failed: the loss is not a number"),
        (JobState.CANCELLED, None, JobResult(cancelled=True), "train   cancelled"),
        (
            JobState.FINISHED,
            None,
            JobResult(cancelled=False, checkpoint={"val_loss": 1.5}),
            "train   finished, validation 1.5000 nats = 2.1640 bits per character",
        ),
    ],
)
def test_the_end_is_rendered(state: JobState, error: str | None, result: JobResult | None, line: str) -> None:
    """A failed job shows the reason, any other the loss of its best checkpoint if it has one."""
    record = StoredJob(request={}, created_at=0.0, result=result, error=error)
    assert render_end(Job("0" * 16, state, None, error, record)) == line
