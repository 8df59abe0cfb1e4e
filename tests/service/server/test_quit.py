"""SIGQUIT and SIGINT end a worker, whatever its main thread is doing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from gunicorn.config import Config

from service.server.worker import BufferedThreadWorker


@pytest.fixture
def worker() -> Iterator[BufferedThreadWorker]:
    """A worker in its main loop, with one thread for requests, which waits for its first."""
    worker = BufferedThreadWorker(0, 0, [], None, 30, Config(), Mock())
    worker.tpool = ThreadPoolExecutor(1)
    worker.method_queue.init()
    worker._is_running = True
    yield worker
    worker.method_queue.close()
    worker.tmp.close()


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT])
def test_the_signal_may_interrupt_code_that_holds_a_lock(worker: BufferedThreadWorker, number: signal.Signals) -> None:
    """That of the pool that is given a request; the handler returns, and the main loop ends the process."""
    handled = threading.Event()

    def interrupt() -> None:
        with worker.tpool._shutdown_lock:
            worker.handle_quit(number, None)
            handled.set()

    threading.Thread(target=interrupt, daemon=True).start()
    assert handled.wait(10)
    with pytest.raises(SystemExit):
        worker.method_queue.run_callbacks(None)
    assert not worker.alive


def test_a_worker_that_still_loads_ends_at_once(worker: BufferedThreadWorker) -> None:
    """It has no main loop yet."""
    worker._is_running = False
    with pytest.raises(SystemExit):
        worker.handle_quit(signal.SIGQUIT, None)
