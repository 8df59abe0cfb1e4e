"""What jobs and killed writers leave behind: nothing; and what happens to a job that lacks memory."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from model.atomic_files import atomic_write, remove_abandoned
from service.jobs.tasks import _is_out_of_memory
from service.store.connect import close, connect
from tests.integration.test_jobs import ENDLESS, SHORT, Stack, words
from tests.servers import eventually

TEMPORARY = ".text.0123456789abcdef.tmp"


FAST = "worker._KEEP_ENDED_S, worker._MAINTENANCE_INTERVAL_S = 0, 1"
"""Changes to the worker: files of ended jobs are removed within seconds."""


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service without a model, and a worker that is not started yet."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.service.start()
    assert stack.service.client.put("/corpora/words", content=words(3000)).status_code == 201
    yield stack
    stack.close()


@pytest.fixture
def stack(idle: Stack) -> Iterator[Stack]:
    """The same stack for each test: no worker, no job and no run folder of another test are there."""
    yield idle
    if idle.worker.process is not None:
        idle.worker.stop()
        idle.worker.process = None
    client = connect(idle.redis.url)
    client.flushall()
    close(client)
    shutil.rmtree(idle.checkpoints.parent / "runs", ignore_errors=True)


def folders(stack: Stack) -> list[Path]:
    runs = stack.checkpoints.parent / "runs"
    return [path for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []


def in_fit(function: str) -> str:
    """Changes to the worker: each training calls this function of `fit` and its arguments."""
    return f"""
from service.jobs.queue import RetrainJob
original = RetrainJob.func.fget
def with_another_fit(self):
    function = original(self)
    import service.jobs.training
    from functools import partial
    service.jobs.training.fit = partial({function}, service.jobs.training.fit)
    return function
RetrainJob.func = property(with_another_fit)
"""


DIVERGES = """
def diverges(fit, corpus, model, config, *args, **options):
    path = fit(corpus, model, config, *args, **options)
    if config.lr == 1:
        from model.errors import TrainingError
        raise TrainingError(f"step {config.steps}: the loss is nan")
    return path
""" + in_fit("diverges")


def test_ended_jobs_leave_no_folder(stack: Stack) -> None:
    """Finished, cancelled while it ran, failed by its loss, killed for the last time: each run folder is removed."""
    stack.start_worker(f"{FAST}\n{DIVERGES}")
    assert stack.ended(stack.submit(**SHORT))["state"] == "finished"
    assert folders(stack) == []
    running = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(running)
    assert [path.name for path in folders(stack)] == [running]
    assert stack.cancel(running)["state"] == "cancelled"
    assert folders(stack) == []
    diverged = stack.ended(stack.submit(**{**SHORT, "lr": 1.0}, promote="never"))
    assert (diverged["state"], diverged["error"]) == ("failed", "step 4: the loss is nan")
    assert folders(stack) == []
    stack.wait_for_idle_worker()
    killed = stack.submit(**ENDLESS, promote="never")
    horses: list[int] = []
    while len(horses) < 4:
        eventually(lambda: stack.worker.horse() not in (None, *horses))
        horses.append(stack.worker.running_horse())
        if len(horses) == 4:
            stack.wait_for_progress(killed)
            assert [path.name for path in folders(stack)] == [killed]
        os.kill(horses[-1], signal.SIGKILL)
    assert stack.ended(killed)["state"] == "failed"
    eventually(lambda: folders(stack) == [], within_s=60)


def test_folders_of_jobs_that_nobody_knows(stack: Stack) -> None:
    """Ended while no worker was there, or without a record for a day: removed. Anything else in the folder stays."""
    runs = stack.checkpoints.parent / "runs"
    stack.start_worker(FAST)
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
    stack.start_worker(FAST)
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
    stack.start_worker(f"{FAST}\nworker.OOM_COUNTERS = (Path('nowhere'), Path({str(counter)!r}))")
    job_id = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(job_id)
    counter.write_text("low 0\noom 4\noom_kill 4\n")
    os.kill(stack.worker.running_horse(), signal.SIGKILL)
    job = stack.ended(job_id)
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"].startswith("the training ran out of memory; another attempt would, too")
    assert "killed at" in job["error"]
    eventually(lambda: folders(stack) == [], within_s=60)


ALARM_AT_THE_END = """
import os, signal
wait4 = os.wait4
def wait4_and_alarm(pid, options):
    result = wait4(pid, options)
    if result[0]:
        os.kill(os.getpid(), signal.SIGALRM)
    return result
os.wait4 = wait4_and_alarm
"""
"""The alarm of a heartbeat comes between the end of the job's process and whoever waits for it."""


def test_a_heartbeat_at_the_moment_of_the_end_loses_no_job(stack: Stack) -> None:
    """How it ended is known: a process that was killed is tried again, one that has finished is not."""
    stack.start_worker(ALARM_AT_THE_END)
    killed = stack.submit(**ENDLESS, promote="never")
    stack.wait_for_progress(killed)
    os.kill(stack.worker.running_horse(), signal.SIGKILL)
    eventually(lambda: stack.job(killed)["attempt"] == 2)
    stack.cancel(killed)
    job = stack.ended(stack.submit(**SHORT, promote="never"))
    assert (job["state"], job["attempt"]) == ("finished", 1)
    assert stack.worker.process is not None
    assert stack.worker.process.poll() is None


NO_MEMORY = """
def needs_too_much(*args, **options):
    import torch
    return torch.empty(2**50, dtype=torch.uint8)
""" + in_fit("needs_too_much")


def test_a_job_that_gets_no_memory_is_not_repeated(stack: Stack) -> None:
    """An allocation that fails, by a limit or on a full GPU: the job fails at once, says why, and leaves no folder."""
    stack.start_worker(NO_MEMORY)
    job = stack.ended(stack.submit(**SHORT))
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
