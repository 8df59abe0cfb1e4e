"""Free memory goes back to the system, now and then; what stays is no work for the collector."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from unittest.mock import Mock

import pytest

from service.server import worker
from service.server.free_memory import return_free_memory

FREE_ALL_BUT_FEW = """
from pathlib import Path
from service.server.free_memory import return_free_memory

def resident_kb():
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])

blocks = [bytes(2000) for _ in range(50_000)]
blocks = blocks[::500]
before = resident_kb()
return_free_memory()
print(before - resident_kb())
"""

LOAD = """
import gc
from gunicorn.workers.gthread import ThreadWorker
from service.server.worker import BufferedThreadWorker

def load(worker):
    worker.wsgi = type("Application", (), {"config": {}, "objects": [[] for _ in range(100_000)]})()

ThreadWorker.load_wsgi = load
worker = BufferedThreadWorker.__new__(BufferedThreadWorker)
worker.max_body_bytes = 0
worker.load_wsgi()
print(len(gc.get_objects()))
"""


def test_what_an_application_loads_is_never_collected_again() -> None:
    """A collection stops every thread for as long as it looks at objects: at none of those that stay."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc: it has no malloc_trim")
def test_what_lies_free_between_used_blocks_goes_back() -> None:
    """Of 100 MB in small blocks, all but 200 KB freed, at least 80 MB."""
    command = [sys.executable, "-c", FREE_ALL_BUT_FEW]
    returned_kb = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert returned_kb > 80_000


def test_a_worker_returns_memory_after_requests_only_and_not_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once after a request; not again before RETURN_MEMORY_S, and not without another request."""
    now = [100.0]
    monkeypatch.setattr("service.server.worker.time.monotonic", lambda: now[0])
    idle = worker.BufferedThreadWorker.__new__(worker.BufferedThreadWorker)
    idle._has_served, idle._next_return, idle._closers = False, 0.0, Mock()
    submitted = idle._closers.submit
    idle._return_memory()
    assert not submitted.called
    idle._has_served = True
    idle._return_memory()
    submitted.assert_called_once_with(return_free_memory)
    idle._has_served = True
    now[0] += worker.RETURN_MEMORY_S - 1
    idle._return_memory()
    assert submitted.call_count == 1
    now[0] += 1
    idle._return_memory()
    idle._return_memory()
    assert submitted.call_count == 2
