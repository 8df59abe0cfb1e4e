"""The engines of all models share the cores: by weight, whatever their blocks cost, and never more than there are."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper import Block, BlockResult, Interrupt
from model.stepper.cpu import CpuStepper
from model.stepper.generate import write
from service.engine.cores import CoreScheduler
from service.engine.engine import Engine
from service.engine.observer import IterationStats, NullObserver
from tests.conftest import ALPHABET, random_checkpoint
from tests.servers import eventually
from tests.service.engine.requests import read, request

ENDLESS = 10**8


def shares(costs: list[float], weights: list[float], n_turns: int) -> list[float]:
    """The shares of one core's time that engines get whose blocks cost so much, and that always have work."""
    now, spent = 0.0, [0.0] * len(costs)
    order: list[int] = []
    cores = CoreScheduler(1, lambda: now)

    def run(i: int) -> None:
        nonlocal now
        queue = cores.queue()
        while len(order) < n_turns:
            with queue.turn() as turn:
                turn.extend(1, weights[i])
                while cores.n_waiting < len(costs) - 1 and len(order) < n_turns:
                    time.sleep(0)  # the others come again
                now += costs[i]
                if len(order) < n_turns:
                    order.append(i)
                    spent[i] += costs[i]

    with ThreadPoolExecutor(len(costs)) as threads:
        list(threads.map(run, range(len(costs))))
    return [s / sum(spent) for s in spent]


@pytest.mark.parametrize(
    ("costs", "weights"),
    [([1] * 5, [1] * 5), ([20, 1, 1, 1, 1], [1] * 5), ([1] * 5, [4, 1, 1, 1, 1]), ([6, 1, 1, 3, 3], [3, 1, 1, 1, 1])],
)
def test_cores_are_shared_by_weight(costs: list[float], weights: list[float]) -> None:
    """An engine whose blocks take twenty times as long gets its share of the time and no more."""
    expected = [w / sum(weights) for w in weights]
    assert shares(costs, weights, 400) == pytest.approx(expected, abs=0.08)


def test_an_engine_that_was_idle_gains_nothing() -> None:
    """It comes next, and soon shares: it does not keep the cores for as long as it left them to others."""
    now = 0.0
    cores = CoreScheduler(1, lambda: now)
    busy, idle = cores.queue(), cores.queue()
    for _ in range(100):
        with busy.turn():
            now += 1
    with idle.turn():
        now += 1
    assert idle.finish > busy.finish - 4


def test_cores_that_are_free_are_shared_by_weight() -> None:
    """An engine gets all cores while it is alone, its share while others have work, and all again when they rest."""
    cores = CoreScheduler(8)
    batching, single = cores.queue(), cores.queue()
    with batching.turn() as turn:
        assert turn.extend(8, 3.0) == 8
    with single.turn() as turn:
        assert turn.extend(8, 1.0) == 2
        with batching.turn() as other:
            assert (other.extend(4, 3.0), other.extend(8, 3.0)) == (4, 6)
    single.rest()
    with batching.turn() as turn:
        assert turn.extend(8, 3.0) == 8


def test_a_turn_that_fails_gives_its_cores_back() -> None:
    """Also those by which it was extended."""
    cores = CoreScheduler(4)
    queue = cores.queue()

    def fail() -> None:
        with queue.turn() as turn:
            assert (turn.extend(3), turn.extend(9)) == (3, 4)
            assert cores.queue().try_turn() is None
            raise RuntimeError("a block failed")

    with pytest.raises(RuntimeError, match="a block failed"):
        fail()
    with queue.turn() as turn:
        assert turn.extend(9) == 4


class Tracked(CpuStepper):
    """Counts the cores that all runs use at a time."""

    used = most = 0
    lock = threading.Lock()

    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        n = n_cores or self.cores_for(block)
        with Tracked.lock:
            Tracked.used += n
            Tracked.most = max(Tracked.most, Tracked.used)
        try:
            return super().run(block, n_cores, interrupt)
        finally:
            with Tracked.lock:
                Tracked.used -= n


class Blocks(NullObserver):
    """The blocks of one engine, in a list that engines share."""

    def __init__(self, name: str, blocks: list[str]) -> None:
        self.name, self.blocks = name, blocks

    def on_iteration(self, stats: IterationStats) -> None:
        if stats.block_s is not None:
            self.blocks.append(self.name)


@contextmanager
def started(checkpoint: Checkpoint, cores: CoreScheduler | None, n_slots: int = 1, name: str = "",
            blocks: list[str] | None = None) -> Iterator[Engine]:  # fmt: skip
    """An engine on a stepper that is tracked."""
    observer = Blocks(name, blocks) if blocks is not None else None
    with_stepper = Tracked(checkpoint.network(), n_slots, threads=4)
    engine = Engine(with_stepper, ALPHABET, checkpoint.fingerprint, max_waiting=9, cores=cores, observer=observer)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        with_stepper.close()


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "control"])
def test_many_models_never_use_more_cores_than_there_are(is_shared: bool) -> None:
    """Six models write on three cores, some with many rows: texts are those made alone. Not shared, they use more."""
    checkpoints = [random_checkpoint(n_hidden=96, seed=i) for i in range(6)]
    cores = CoreScheduler(3) if is_shared else None
    Tracked.most = 0
    with ExitStack() as stack:
        engines = [
            stack.enter_context(started(c, cores, n_slots=1 if i % 4 else 16)) for i, c in enumerate(checkpoints)
        ]
        streams = [e.submit(request("hello ", 600, seed=s)) for e in engines for s in range(e.n_slots)]
        texts = iter([read(stream)[0] for stream in streams])
    assert (Tracked.most <= 3) == is_shared
    for i, checkpoint in enumerate(checkpoints):
        alone = CpuStepper(checkpoint.network(), 1)
        for seed in range(1 if i % 4 else 16):
            expected = "".join(write(alone, ALPHABET, "hello ", 600, SamplingParams(), seed=seed))
            assert next(texts) == expected, (i, seed)


@pytest.mark.usefixtures("native_code")
def test_a_huge_model_does_not_starve_a_small_one() -> None:
    """64 rows of a huge model beside one row of a small one, on one core: one block of the huge one between two of its.

    So the small model's gap is that block, and its share of the time what its own block takes of both.
    """
    blocks: list[str] = []
    cores = CoreScheduler(1)
    with (
        started(random_checkpoint(n_layers=1, n_hidden=1024), cores, 64, "huge", blocks) as huge,
        started(random_checkpoint(n_layers=1, n_hidden=64), cores, 1, "small", blocks) as small,
    ):
        streams = [huge.submit(request("hello ", ENDLESS, seed=s)) for s in range(64)]
        eventually(lambda: "huge" in blocks)
        streams.append(small.submit(request("hello ", ENDLESS)))
        eventually(lambda: "small" in blocks)
        start = len(blocks)
        eventually(lambda: len(blocks) > start + 30)
        for stream in streams:
            stream.close()
    order = "".join(name[0] for name in blocks[start : start + 30])
    assert max(map(len, order.split("s"))) <= 2, order
