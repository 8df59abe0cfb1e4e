"""The order of a worker's shutdown."""

from __future__ import annotations

import threading
import time

import pytest

from model.checkpoints.file_format import Checkpoint
from service.engine.stream import Chunk, End, Failed, Stream
from service.errors import Draining
from service.models.manager import ModelManager
from service.operations.drain import Drain
from tests.servers import eventually
from tests.service.engine.requests import request
from tests.service.models.loaded import load


@pytest.fixture
def models(tiny: Checkpoint) -> ModelManager:
    models = ModelManager()
    models.serve(load(tiny))
    return models


def submit(models: ModelManager, n: int) -> Stream:
    with models.admit() as lease:
        return lease.model.engine.submit(request(max_chars=n))


def last_item(stream: Stream) -> End | Failed:
    while isinstance(item := stream.get(10), Chunk):
        pass
    assert isinstance(item, End | Failed)
    return item


def test_an_idle_worker_exits_at_once(models: ModelManager) -> None:
    """Without a running request the drain ends at once, whatever its timeout."""
    began = time.monotonic()
    Drain(models, notice_s=0, timeout_s=60).run()
    assert time.monotonic() - began < 5
    with pytest.raises(Draining):
        models.admit()


def test_a_running_request_finishes(models: ModelManager) -> None:
    """While it runs no other request is admitted, and it is generated to its end."""
    running = submit(models, 3000)
    draining = threading.Thread(target=Drain(models, notice_s=0, timeout_s=60).run)
    draining.start()
    eventually(lambda: models.is_closed)
    with pytest.raises(Draining):
        models.admit()
    end = last_item(running)
    assert isinstance(end, End)
    assert end.finish_reason == "length"
    draining.join()


def test_a_long_request_is_interrupted(models: ModelManager) -> None:
    """At the timeout running and waiting requests end with the error that tells clients to resume elsewhere."""
    streams = [submit(models, 10**7) for _ in range(6)]
    Drain(models, notice_s=0, timeout_s=0.2).run()
    for stream in streams:
        item = last_item(stream)
        assert isinstance(item, Failed)
        assert isinstance(item.error, Draining)


def test_during_the_notice_requests_are_accepted(models: ModelManager) -> None:
    """The worker reports that it drains, and still accepts requests until the notice is over."""
    notice_is_over = threading.Event()
    drain = Drain(models, notice_s=1.0, timeout_s=0, sleep=lambda _: (notice_is_over.wait(), None)[1])
    draining = threading.Thread(target=drain.run)
    draining.start()
    eventually(lambda: drain.is_draining)
    assert isinstance(last_item(submit(models, 5)), End)
    notice_is_over.set()
    draining.join()
    assert models.is_closed
