"""What jobs and killed writers leave behind: nothing; and what happens to a job that lacks memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from model.atomic_files import atomic_write, remove_abandoned
from service.jobs.tasks import _is_out_of_memory
from tests.integration.test_jobs import ENDLESS, SMALL, Stack, words
from tests.servers import ROOT, eventually

TEMPORARY = ".text.0123456789abcdef.tmp"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A service without a model, and a worker that is not started yet."""
    stack = Stack(tmp_path)
    stack.service.start()
    assert stack.service.client.put("/corpora/words", content=words(3000)).status_code == 201
    yield stack
    if stack.worker.process is not None:
        stack.worker.stop()
    stack.service.stop()
    stack.redis.remove()


def start_worker(stack: Stack, changes: str) -> None:
    """Start the worker, with changes to its modules."""
    program = f"""
import sys
from pathlib import Path
import service.jobs.__main__ as program, service.jobs.worker as worker
worker._KEEP_ENDED_S = 0
{changes}
sys.argv = ["service.jobs"]
sys.exit(program.main())
"""
    stack.worker.process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=stack.worker._environment)


def folders(stack: Stack) -> list[Path]:
    runs = stack.checkpoints.parent / "runs"
    return [path for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []


def test_ended_jobs_leave_no_folder(stack: Stack) -> None:
    """Finished, cancelled while it ran, failed by its loss, killed for the last time: each run folder is removed."""
    start_worker(stack, "")
    assert stack.ended(stack.submit(**SMALL))["state"] == "finished"
    assert folders(stack) == []
    running = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(running)
    assert [path.name for path in folders(stack)] == [running]
    assert stack.cancel(running)["state"] == "cancelled"
    assert folders(stack) == []
    diverged = stack.ended(stack.submit(**{**SMALL, "lr": 1.0, "clip": 1e6, "steps": 4000}, promote="never"))
    assert diverged["state"] in ("failed", "finished")
    assert folders(stack) == []
    killed = stack.submit(**ENDLESS, promote="never")
    for attempt in range(1, 5):
        eventually(lambda: stack.is_at(killed, attempt), within_s=60)  # noqa: B023 - called at once
        eventually(lambda: stack.worker.horse() is not None)
        os.kill(stack.worker.horse() or 0, signal.SIGKILL)
    assert stack.ended(killed)["state"] == "failed"
    eventually(lambda: folders(stack) == [], within_s=60)


def test_folders_of_jobs_that_nobody_knows(stack: Stack) -> None:
    """Ended while no worker was there, or without a record for a day: removed. Anything else in the folder stays."""
    runs = stack.checkpoints.parent / "runs"
    start_worker(stack, "")
    running = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(running)
    stack.worker.stop()
    assert stack.cancel(running)["state"] == "cancelled"
    assert (runs / running).is_dir()
    old, new, other = runs / ("0" * 16), runs / ("1" * 16), runs / "mine"
    for folder in (old, new, other):
        folder.mkdir()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    (runs / TEMPORARY).touch()
    os.utime(runs / TEMPORARY, (0, 0))
    start_worker(stack, "")
    eventually(lambda: not (runs / running).exists() and not old.exists(), within_s=60)
    eventually(lambda: not (runs / TEMPORARY).exists())
    assert new.is_dir()
    assert other.is_dir()


def test_a_killed_upload_leaves_nothing(stack: Stack) -> None:
    """kill -9 of the server during an upload: the next start removes its temporary file; the corpus is unchanged."""
    corpora = stack.checkpoints.parent / "corpora"
    before = (corpora / "words").read_bytes()

    def body() -> Iterator[bytes]:
        yield b"a" * 2_000_000
        eventually(lambda: any(corpora.glob(".words.*.tmp")))
        assert stack.service._process is not None
        os.killpg(stack.service._process.pid, signal.SIGKILL)
        yield b"a" * 2_000_000

    with pytest.raises(httpx.TransportError):
        stack.service.client.put("/corpora/words", content=body())
    (left,) = corpora.glob(".words.*.tmp")
    os.utime(left, (0, 0))
    assert stack.service._process is not None
    stack.service._process.wait()
    stack.service.start()
    assert not left.exists()
    assert (corpora / "words").read_bytes() == before


def test_a_file_that_is_being_written_stays(tmp_path: Path) -> None:
    """Only what nobody writes is removed, however old it is; other files with such names are none of ours."""
    (tmp_path / "below").mkdir()
    strangers = [tmp_path / name for name in (".text.tmp", ".text.0123.tmp", "text.0123456789abcdef.tmp")]
    for path in [*strangers, tmp_path / TEMPORARY, tmp_path / "below" / TEMPORARY]:
        path.touch()
        os.utime(path, (0, 0))
    young = tmp_path / ".text.fedcba9876543210.tmp"
    young.touch()
    with atomic_write(tmp_path / "text") as file:
        file.write(b"text")
        (live,) = set(tmp_path.glob(".text.????????????????.tmp")) - {young, tmp_path / TEMPORARY}
        os.utime(live, (0, 0))
        assert sorted(remove_abandoned(tmp_path)) == sorted([tmp_path / TEMPORARY, tmp_path / "below" / TEMPORARY])
    assert (tmp_path / "text").read_bytes() == b"text"
    assert young.exists()
    assert all(path.exists() for path in strangers)
    assert remove_abandoned(tmp_path / "none") == []


def test_a_job_killed_for_memory_is_not_repeated(stack: Stack, tmp_path: Path) -> None:
    """The kernel's counter of processes killed for memory has risen: the job fails at once and says why."""
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 3\noom_kill 3\n")
    start_worker(stack, f"worker.OOM_COUNTERS = (Path('nowhere'), Path({str(counter)!r}))")
    job_id = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(job_id)
    counter.write_text("low 0\noom 4\noom_kill 4\n")
    os.kill(stack.worker.horse() or 0, signal.SIGKILL)
    job = stack.ended(job_id)
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"].startswith("the training ran out of memory; another attempt would, too")
    assert "killed at" in job["error"]
    eventually(lambda: folders(stack) == [], within_s=60)


NO_MEMORY = """
from service.jobs.queue import RetrainJob
original = RetrainJob.func.fget
def with_a_fit_that_needs_too_much(self):
    function = original(self)
    import service.jobs.training, torch
    service.jobs.training.fit = lambda *a, **k: torch.empty(2**50, dtype=torch.uint8)
    return function
RetrainJob.func = property(with_a_fit_that_needs_too_much)
"""


def test_a_job_that_gets_no_memory_is_not_repeated(stack: Stack) -> None:
    """An allocation that fails, by a limit or on a full GPU: the job fails at once, says why, and leaves no folder."""
    start_worker(stack, NO_MEMORY)
    job = stack.ended(stack.submit(**SMALL))
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"].startswith("the training ran out of memory; another attempt would, too")
    assert folders(stack) == []


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50, dtype=torch.uint8), lambda: bytearray(2**60)])
def test_errors_of_allocation_are_known(allocate: object) -> None:
    """torch's error on a CPU and Python's own are recognized; other errors are not."""
    assert callable(allocate)
    with pytest.raises((RuntimeError, MemoryError)) as error:
        allocate()
    assert _is_out_of_memory(error.value)
    assert _is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not _is_out_of_memory(RuntimeError("shapes do not match"))
