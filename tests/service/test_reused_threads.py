"""Threads are used again, not kept in any number, and nothing that they ran stays in memory by them."""

from __future__ import annotations

import os
import threading
import weakref

import pytest

from service.reused_threads import MAX_IDLE, ReusedThreads
from tests.servers import eventually


def running(threads: ReusedThreads, n: int) -> tuple[list[int], threading.Event, list[threading.Event]]:
    """So many functions that run until the event: the threads that run them, the event, and their ends."""
    idents, release = list[int](), threading.Event()
    begun = threading.Barrier(n + 1)

    def work() -> None:
        idents.append(threading.get_ident())
        begun.wait()
        release.wait()

    ended = [threads.start(work) for _ in range(n)]
    begun.wait()
    return idents, release, ended


def test_a_thread_runs_one_after_the_other() -> None:
    """Those that have ended run the next ones; as many as run at a time are made."""
    threads = ReusedThreads("test")
    first, release, ended = running(threads, 3)
    assert len(set(first)) == 3
    assert not any(element.is_set() for element in ended)
    release.set()
    assert all(element.wait(30) for element in ended)
    second, release, ended = running(threads, 4)
    assert len(set(second) - set(first)) == 1
    release.set()
    assert all(element.wait(30) for element in ended)


def test_not_every_thread_is_kept() -> None:
    """A moment with many leaves few behind."""
    threads, before = ReusedThreads("test"), threading.active_count()
    _, release, ended = running(threads, MAX_IDLE + 5)
    release.set()
    assert all(element.wait(30) for element in ended)
    eventually(lambda: threading.active_count() - before <= MAX_IDLE)


def test_what_has_run_is_free() -> None:
    """A thread that waits refers to nothing that it ran."""

    class Work:
        def __call__(self) -> None:
            """Do nothing."""

    work = Work()
    gone = weakref.ref(work)
    ended = ReusedThreads("test").start(work)
    del work
    assert ended.wait(30)
    assert gone() is None


def test_an_error_ends_its_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for the end is woken, the error is reported, and the next function gets another thread."""
    reported = list[type[BaseException]]()
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    threads = ReusedThreads("test")

    def fails() -> None:
        raise ValueError("a bug")

    assert threads.start(fails).wait(30)
    eventually(lambda: reported == [ValueError])
    assert threads.start(lambda: None).wait(30)


def test_a_forked_process_makes_its_own() -> None:
    """It has none of the threads of its parent, also not those that wait."""
    threads = ReusedThreads("test")
    assert threads.start(lambda: None).wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.start(lambda: None).wait(10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
