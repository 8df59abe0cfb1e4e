"""A replaced model is freed when its last request ends, whichever way that request ends."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from model.checkpoints.file_format import Checkpoint
from model.stepper import Block, BlockResult, Interrupt
from model.stepper.reference import ReferenceStepper
from service.access.limits import RateLimiter
from service.errors import NoModel
from service.generation.service import GenerationOptions, GenerationService
from service.inspection.service import InspectionService
from service.models.manager import ModelManager
from service.operations.metrics import Metrics
from service.routes import converters, error_responses, generate, generation_events, inspection, sessions
from service.store.memory import MemorySessions
from service.store.prefixes import MemoryPrefixes
from tests.conftest import random_checkpoint
from tests.servers import eventually
from tests.service.models.loaded import load

LONG = 1_000_000


class Stepper(ReferenceStepper):
    """One that a test can break, and that knows whether it was closed."""

    is_broken = False
    is_closed = False

    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        if self.is_broken:
            raise RuntimeError("a bug in a kernel")
        return super().run(block, n_cores, interrupt)

    def close(self) -> None:
        self.is_closed = True


class Service:
    """The routes that use a model, in this process, and a model that can be replaced."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.manager = ModelManager()
        self.store = MemorySessions(60, 60)
        self.stepper = Stepper(checkpoint.network(), 4)
        self.model = load(checkpoint, stepper=self.stepper)
        self.manager.serve(self.model)
        options = GenerationOptions(LONG, lease_s=60, snapshot_interval_s=1, recent_text_chars=100)
        generation = GenerationService(self.manager, self.store, MemoryPrefixes(), options)
        app = Flask(__name__)
        error_responses.register(app, Metrics().count_refused_request, lambda _: None)
        converters.register(app)
        app.register_blueprint(generate.blueprint(generation))
        app.register_blueprint(sessions.blueprint(generation, self.store, self.manager, 100))
        app.register_blueprint(inspection.blueprint(InspectionService(self.manager, self.store, 1000), RateLimiter("")))
        self.client = app.test_client()

    def replace_model(self) -> None:
        self.manager.serve(load(random_checkpoint(seed=9)))

    def post(self, path: str = "/generate", **body: Any) -> TestResponse:
        return self.client.post(path, json=body)

    def stream(self, **body: Any) -> tuple[TestResponse, Iterator[bytes]]:
        """A response whose body is read by the caller, without the empty parts that only say that it waits."""
        response = self.client.post("/generate", json={**body, "stream": True})
        return response, filter(None, response.response)  # type: ignore[arg-type]


def finished(service: Service, keep: Callable[[BaseException], None]) -> None:
    response, events = service.stream(max_chars=50)
    next(events)
    service.replace_model()
    assert b"event: done" in b"".join(events)
    response.close()


def finished_in_one_answer(service: Service, keep: Callable[[BaseException], None]) -> None:
    answers: list[TestResponse] = []
    thread = threading.Thread(target=lambda: answers.append(service.post(max_chars=3000)))
    thread.start()
    eventually(lambda: service.model.n_leases > 0)
    service.replace_model()
    thread.join()
    assert answers[0].status_code == 200


def client_left(service: Service, keep: Callable[[BaseException], None]) -> None:
    response, events = service.stream(max_chars=LONG)
    next(events)
    next(events)
    service.replace_model()
    response.close()


def client_left_before_the_first_byte(service: Service, keep: Callable[[BaseException], None]) -> None:
    response, _ = service.stream(max_chars=LONG)
    service.replace_model()
    response.close()


def refused_before_the_start(service: Service, keep: Callable[[BaseException], None]) -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": "É"},
        {"max_chars": LONG + 1},
        {"session_id": "x" * 32},
        {"logprobs": 3},  # this model's file cannot be read
    ]
    assert [service.post(**body).status_code for body in bodies] == [422, 422, 404, 503]
    assert service.client.get(f"/sessions/{'x' * 32}/stream").status_code == 404
    assert service.post("/score", text="a").status_code == 503
    assert service.post("/inspect", text="a").status_code == 503
    service.replace_model()


def refused_because_the_queue_is_full(service: Service, keep: Callable[[BaseException], None]) -> None:
    responses = [service.stream(max_chars=LONG)[0] for _ in range(8)]
    assert service.post(max_chars=1).status_code == 429
    service.replace_model()
    for response in responses:
        assert service.manager.n_retired == 1
        response.close()


def taken_over(service: Service, keep: Callable[[BaseException], None]) -> None:
    session_id = service.post(max_chars=10).get_json()["session_id"]
    response, events = service.stream(session_id=session_id, max_chars=3000)
    next(events)
    service.store.acquire(session_id, lease_s=60, force=True)
    service.replace_model()
    assert b"session_conflict" in b"".join(events)
    response.close()


def failed_in_the_engine(service: Service, keep: Callable[[BaseException], None]) -> None:
    response, events = service.stream(max_chars=LONG)
    next(events)
    next(events)
    service.replace_model()
    service.stepper.is_broken = True
    assert b'"code":"internal"' in b"".join(events)
    response.close()


def exception_in_the_handler(service: Service, keep: Callable[[BaseException], None]) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        error = RuntimeError("a bug in a handler")
        keep(error)
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "jsonify", broken)
        patch.setattr(generate, "event_stream_response", broken)
        assert service.post(max_chars=10).status_code == 500
    service.replace_model()


def exception_in_the_stream(service: Service, keep: Callable[[BaseException], None]) -> None:
    response, events = service.stream(max_chars=LONG)
    next(events)

    def broken(*args: object, **kwargs: object) -> bytes:
        raise RuntimeError("a bug in the encoder")

    service.replace_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation_events, "encode_event", broken)
        with pytest.raises(RuntimeError) as caught:
            next(events)
    keep(caught.value)
    response.close()


ENDINGS = [
    finished,
    finished_in_one_answer,
    client_left,
    client_left_before_the_first_byte,
    refused_before_the_start,
    refused_because_the_queue_is_full,
    taken_over,
    failed_in_the_engine,
    exception_in_the_handler,
    exception_in_the_stream,
]


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
def test_a_replaced_model_is_freed_with_its_last_request(
    end: Callable[[Service, Callable[[BaseException], None]], None], tiny: Checkpoint
) -> None:
    """At once, and its memory too, though a traceback of the request is kept; the garbage collector is not needed."""
    kept: list[BaseException] = []
    service = Service(tiny)
    end(service, kept.append)
    assert (service.manager.n_retired, service.model.n_leases) == (0, 0)
    assert service.stepper.is_closed
    assert service.model.engine.has_ended
    stepper = weakref.ref(service.stepper)
    del service.stepper
    assert stepper() is None or end is failed_in_the_engine  # the stepper is in its own traceback, which pytest keeps
    service.manager.stop()


def test_a_model_without_requests_is_freed_at_once(tiny: Checkpoint) -> None:
    """Nobody uses it when it is replaced; a model that is still used is not freed."""
    manager = ModelManager()
    models = [load(tiny) for _ in range(3)]
    manager.serve(models[0])
    manager.serve(models[1])
    assert manager.n_retired == 0
    first, second = manager.admit(), manager.acquire()
    manager.serve(models[2])
    first.release()
    first.release()
    assert (manager.n_retired, models[1].n_leases) == (1, 1)
    with second:
        assert second.model is models[1]
    assert manager.n_retired == 0
    manager.stop()


def test_of_many_threads_none_gets_a_freed_model(tiny: Checkpoint) -> None:
    """Leases are taken while the model is replaced again and again: each is of a model that still generates."""
    manager = ModelManager()
    manager.serve(load(tiny))
    done = threading.Event()
    refused: list[str] = []

    def use() -> None:
        while not done.is_set():
            with manager.admit() as lease:
                try:
                    lease.model.engine.check_capacity()
                except Exception as e:
                    refused.append(repr(e))

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        manager.serve(load(tiny))
    done.set()
    for thread in threads:
        thread.join()
    assert refused == []
    assert manager.n_retired == 0
    manager.stop()


def test_a_forgotten_lease_is_reported_and_released(tiny: Checkpoint) -> None:
    """A caller that loses its lease has a bug, which is said; the model is freed all the same."""
    manager, model = ModelManager(), load(tiny)
    manager.serve(model)
    lease = manager.admit()
    manager.serve(load(tiny))
    with pytest.warns(ResourceWarning, match="was not released"):
        del lease
    for thread in threading.enumerate():
        if thread.name == "release-model":
            thread.join()
    assert (manager.n_retired, model.n_leases) == (0, 0)
    manager.stop()


def test_without_a_model_there_is_no_lease() -> None:
    """Before the first one: 503, with what the service knows of the job that trains it."""
    manager = ModelManager(lambda: {"job": "/jobs/1"})
    for ask in (manager.admit, manager.acquire, lambda: manager.current):
        with pytest.raises(NoModel) as refused:
            ask()
        assert refused.value.details == {"job": "/jobs/1"}
