"""The order in which a worker leaves."""

from __future__ import annotations

import threading
import time

import pytest

from model.checkpoints.file_format import Checkpoint
from model.stepper.reference import ReferenceStepper
from service.engine.engine import Engine
from service.engine.stream import Chunk, End, Failed, Stream
from service.errors import Draining
from service.models.manager import LoadedModel, ModelManager
from service.operations.drain import Drain
from tests.conftest import ALPHABET
from tests.servers import eventually
from tests.service.engine.requests import request


@pytest.fixture
def serving(tiny: Checkpoint) -> ModelManager:
    engine = Engine(ReferenceStepper(tiny.network(), 4), ALPHABET, "f", max_waiting=4)
    engine.start()
    serving = ModelManager()
    serving.serve(LoadedModel(engine, "tiny"))
    return serving


def text_of(serving: ModelManager, n: int) -> Stream:
    return serving.admit().engine.submit(request(max_chars=n))


def ended(stream: Stream) -> End | Failed:
    while isinstance(item := stream.get(10), Chunk):
        pass
    assert isinstance(item, End | Failed)
    return item


def test_nobody_waits_for_nothing(serving: ModelManager) -> None:
    """Without a text that runs, a worker leaves at once, however long it might take."""
    began = time.monotonic()
    Drain(serving, notice_s=0, limit_s=60).run()
    assert time.monotonic() - began < 5
    with pytest.raises(Draining):
        serving.admit()


def test_a_short_text_ends_as_it_would_have(serving: ModelManager) -> None:
    """While one is on its way out, no other begins, and it is written to its end."""
    running = text_of(serving, 3000)
    leaving = threading.Thread(target=Drain(serving, notice_s=0, limit_s=60).run)
    leaving.start()
    eventually(lambda: serving.is_closed)
    with pytest.raises(Draining):
        serving.admit()
    end = ended(running)
    assert isinstance(end, End)
    assert end.finish_reason == "length"
    leaving.join()


def test_a_long_text_is_sent_away(serving: ModelManager) -> None:
    """At the limit it ends with the error that its client knows; a text in the line, too."""
    texts = [text_of(serving, 10**7) for _ in range(6)]
    Drain(serving, notice_s=0, limit_s=0.2).run()
    for each in texts:
        last = ended(each)
        assert isinstance(last, Failed)
        assert isinstance(last.error, Draining)


def test_first_it_is_only_said(serving: ModelManager) -> None:
    """For the time of the notice requests are taken as ever, though it says that it leaves."""
    drain = Drain(serving, notice_s=1.0, limit_s=0)
    leaving = threading.Thread(target=drain.run)
    leaving.start()
    eventually(lambda: drain.is_leaving)
    one = text_of(serving, 5)
    assert isinstance(ended(one), End)
    leaving.join()
    assert serving.is_closed
