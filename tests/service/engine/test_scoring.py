"""Texts that are only read: between the blocks of others, in turns, and never for more than their share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.checkpoints.file_format import Checkpoint
from model.stepper.cpu import CpuStepper
from model.stepper.cpu.scoring import NativeScoring
from model.stepper.reference import ReferenceStepper
from model.stepper.scoring import PackedTexts, score_texts
from service.engine import scoring
from service.engine.cores import CoreScheduler
from service.engine.engine import Engine
from service.engine.scoring import BUSY_SHARE, ScoringJob, ScoringQueue
from service.engine.stream import Chunk
from service.errors import Draining, QueueFull, ServiceError
from tests.conftest import ALPHABET
from tests.service.engine.requests import request

pytestmark = pytest.mark.usefixtures("native_code")
ENDLESS = 10**8


def texts(n: int = 40, chars: int = 30) -> PackedTexts:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, len(ALPHABET), (n, chars)).astype(np.int32)
    return PackedTexts.of(ids.ravel(), np.full(n, chars), np.lexsort(ids.T[::-1]), ALPHABET.start)


@pytest.fixture
def engine(tiny: Checkpoint) -> Iterator[Engine]:
    engine = Engine(CpuStepper(tiny.network(), 2), ALPHABET, tiny.fingerprint, max_waiting=2, block_s=0.002)
    engine.start()
    yield engine
    engine.stop()


def read(job: ScoringJob) -> NDArray[np.float32]:
    logprobs = job.wait(60)
    assert logprobs is not None
    return logprobs


def test_texts_are_read_alone_and_beside_others(engine: Engine, tiny: Checkpoint) -> None:
    """Bit for bit as by the stepper alone; a text that is generated beside them comes on."""
    expected = score_texts(CpuStepper(tiny.network(), 1), texts()).tobytes()
    assert read(engine.score(texts())).tobytes() == expected
    stream = engine.submit(request("hello", ENDLESS))
    jobs = [engine.score(texts()) for _ in range(3)]
    assert {read(job).tobytes() for job in jobs} == {expected}
    for _ in range(3):
        assert isinstance(stream.get(60), Chunk)
    stream.close()


def test_while_a_text_is_generated_reading_takes_its_share(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is to take a third of the time of the block before it; without a text, that of a block."""
    budgets: list[float] = []
    blocks: list[float] = []
    run = ScoringQueue.run

    def recorded(queue: ScoringQueue, seconds: float, n_cores: int) -> int:
        blocks.append(engine._stats.block_s or 0.0)
        budgets.append(seconds)
        return run(queue, seconds, n_cores)

    monkeypatch.setattr(ScoringQueue, "run", recorded)
    read(engine.score(texts()))
    assert set(budgets) == {0.002}
    stream = engine.submit(request("hello", ENDLESS))
    assert isinstance(stream.get(60), Chunk)
    budgets.clear()
    blocks.clear()
    read(engine.score(texts(400)))
    stream.close()
    assert all(blocks)
    assert budgets == pytest.approx([block * BUSY_SHARE / (1 - BUSY_SHARE) for block in blocks])


def test_reading_uses_the_cores_of_its_turn(tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them while no other model has work, and one while another model has the others."""
    used: list[int] = []
    run = NativeScoring.run

    def recorded(scoring: NativeScoring, steps: int, n_cores: int = 0) -> int:
        used.append(n_cores)
        return run(scoring, steps, n_cores)

    monkeypatch.setattr(NativeScoring, "run", recorded)
    cores = CoreScheduler(2)
    stepper = CpuStepper(tiny.network(), 1)
    engine = Engine(stepper, ALPHABET, tiny.fingerprint, max_waiting=2, block_s=0.002, cores=cores)
    engine.start()
    try:
        alone = read(engine.score(texts()))
        assert set(used) == {2}
        used.clear()
        with cores.queue().turn():
            beside = read(engine.score(texts()))
        assert set(used) == {1}
        assert beside.tobytes() == alone.tobytes()
    finally:
        engine.stop()


class Stepped:
    """A stepper whose reading is stepped by hand, and can be made to fail."""

    def __init__(self) -> None:
        self.read: list[int] = []  # the number of texts of whoever was read
        self.error: Exception | None = None

    def begin_scoring(self, ids: Any, starts: NDArray[np.int64], logprobs: NDArray[np.float32]) -> Stepped.Reading:
        return self.Reading(self, len(starts) - 1)

    class Reading:
        def __init__(self, stepper: Stepped, n: int) -> None:
            self.stepper, self.n = stepper, n

        def run(self, steps: int, n_cores: int = 0) -> int:
            if self.stepper.error:
                raise self.stepper.error
            self.stepper.read.append(self.n)
            return steps

        def close(self) -> None:
            pass


def test_jobs_take_turns_and_those_that_nobody_waits_for_end() -> None:
    """As many as allowed are read in turn; the next one follows when a client has left."""
    stepper = Stepped()
    queue = ScoringQueue(stepper)
    jobs = [ScoringJob(texts(n + 1)) for n in range(scoring._MAX_OPEN + 1)]
    for job in jobs:
        queue.add(job)
    for _ in range(2 * scoring._MAX_OPEN):
        assert queue.run(0.01) == 0
    assert sorted(stepper.read) == sorted([1, 2, 3, 4] * 2)
    jobs[1].close()
    for _ in range(2 * scoring._MAX_OPEN):
        queue.run(0.01)
    assert (len(queue), stepper.read[-4:].count(5)) == (scoring._MAX_OPEN, 1)


def test_an_error_ends_the_job_that_met_it() -> None:
    """The others are read on."""
    stepper = Stepped()
    queue = ScoringQueue(stepper)
    one, other = ScoringJob(texts(1)), ScoringJob(texts(2))
    queue.add(one)
    queue.add(other)
    queue.run(0.01)
    stepper.error, n_read = MemoryError("no memory"), len(stepper.read)
    queue.run(0.01)
    stepper.error = None
    queue.run(0.01)
    assert (len(queue), len(stepper.read)) == (1, n_read + 1)
    failed = one if stepper.read[-1] == 2 else other
    with pytest.raises(ServiceError, match="internal error"):
        failed.wait(0)


def test_a_stop_ends_the_jobs(tiny: Checkpoint) -> None:
    """Those that are read, those that wait and those that come later; and too many at a time are refused."""
    engine = Engine(CpuStepper(tiny.network(), 1), ALPHABET, tiny.fingerprint, max_waiting=1)
    jobs = [engine.score(texts()) for _ in range(2)]
    assert engine.in_flight == 2
    with pytest.raises(QueueFull, match="wait to be scored"):
        engine.score(texts())
    stopping = threading.Thread(target=engine.stop)
    engine._is_stopping = True  # before the thread reads anything
    engine.start()
    stopping.start()
    stopping.join()
    for job in jobs:
        with pytest.raises(Draining):
            job.wait(0)
    with pytest.raises(Draining):
        engine.score(texts())
    assert engine.in_flight == 0


def test_a_stepper_without_it_says_so(tiny: Checkpoint) -> None:
    """Its texts are read in slots."""
    reference = Engine(ReferenceStepper(tiny.network(), 2), ALPHABET, tiny.fingerprint, max_waiting=2)
    native = Engine(CpuStepper(tiny.network(), 2), ALPHABET, tiny.fingerprint, max_waiting=2)
    assert (reference.can_score, native.can_score) == (False, True)
