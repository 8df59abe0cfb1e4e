"""What the engines of several models take from one another, with turns on the cores and without, without HTTP.

    python -m bench.cores [--models 24] [--seconds 4]

`many`: one text each of so many models of 1 x 256. `huge`: one text of a model of 1 x 256 beside 64 of a model of
2 x 1024. Rates are in characters a second, gaps those between two pieces of a text. `alone` is the one text without
others; `cpu` is of all threads of the process. Each case is measured with turns, without, and with turns again. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.load import quantiles
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.cpu import CpuStepper, available_cores
from service.engine.cores import CoreScheduler
from service.engine.engine import Engine
from service.engine.sequence import SequenceRequest
from service.engine.stream import Chunk, Stream
from tests.conftest import random_checkpoint

ENDLESS = 10**9


@contextlib.contextmanager
def started(checkpoint: Checkpoint, cores: CoreScheduler | None, n_slots: int) -> Iterator[Engine]:
    """Run an engine."""
    stepper = CpuStepper(checkpoint.network(), n_slots)
    engine = Engine(stepper, checkpoint.vocab, checkpoint.fingerprint, max_waiting=64, cores=cores)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        stepper.close()


class Reader:
    """Reads a stream on a thread of its own."""

    def __init__(self, engine: Engine, seed: int) -> None:
        """Submit an endless text."""
        feed = np.array([engine.vocab.start, *engine.vocab.encode("hello ")], np.int32)
        self.stream: Stream = engine.submit(SequenceRequest(feed, 0, ENDLESS, SamplingParams(), seed))
        self.pieces: list[tuple[float, int]] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        while isinstance(item := self.stream.get(60), Chunk):
            self.pieces.append((time.monotonic(), len(item.text)))

    def measured(self, since: float) -> tuple[int, list[float]]:
        """Return the characters since a time, and the gaps."""
        pieces = [piece for piece in self.pieces if piece[0] >= since]
        times = [at for at, _ in pieces]
        return sum(n for _, n in pieces), [b - a for a, b in itertools.pairwise(times)]


def measure(models: list[tuple[Checkpoint, int]], cores: CoreScheduler | None, seconds: float) -> dict[str, Any]:
    """Run texts on each model, as many as it has slots; the result is of the first model and of all."""
    with contextlib.ExitStack() as stack:
        engines = [stack.enter_context(started(checkpoint, cores, n_slots)) for checkpoint, n_slots in models]
        readers = [[Reader(engine, seed) for seed in range(engine.n_slots)] for engine in engines]
        time.sleep(1.0)  # blocks have their length
        since, cpu = time.monotonic(), time.process_time()
        time.sleep(seconds)
        cpu_s = time.process_time() - cpu
        results = [[reader.measured(since) for reader in group] for group in readers]
        for group in readers:
            for reader in group:
                reader.stream.close()
    chars = [sum(n for n, _ in group) for group in results]
    gaps = [gap for group in results for _, of_text in group for gap in of_text]
    return {
        "first": round(chars[0] / seconds),
        "all": round(sum(chars) / seconds),
        "first_gap_ms": quantiles([gap for _, of_text in results[0] for gap in of_text]),
        "gap_ms": quantiles(gaps),
        "cpu": round(cpu_s / seconds, 2),
        "chars_per_cpu_s": round(sum(chars) / cpu_s),
    }


def main() -> None:
    """Measure each case, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=4.0)
    args = parser.parse_args()
    small = [(random_checkpoint(n_layers=1, n_hidden=256, seed=i), 1) for i in range(args.models)]
    huge = (random_checkpoint(n_layers=2, n_hidden=1024), 64)
    result: dict[str, Any] = {"cores": available_cores(), "alone": measure(small[:1], None, args.seconds)}
    print("alone", result["alone"])
    for name, models in (("many", small), ("huge", [small[0], huge])):
        for turns in ("turns", "free", "turns again"):
            cores = None if turns == "free" else CoreScheduler(available_cores())
            result[f"{name}, {turns}"] = measure(models, cores, args.seconds)
            print(f"{name}, {turns}", result[f"{name}, {turns}"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
