"""Which models stay in memory: the share of requests whose model is loaded, by what is evicted first. A simulation.

    python -m bench.eviction                                  # 1,000 models, memory of 300 MB
    python -m bench.eviction --models 200 --memory-mb 80

Models have the shapes of bench.models and are requested one at a time by Zipf's law. In the middle of the run every
model gets the popularity of another one. Compared are the least recently used one (LRU), GreedyDual-Size-Frequency
(GDSF; a load costs the same for all), and what service/models/eviction.py does, by its half-life.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from typing import Protocol

from bench.load import zipf
from service.models import eviction

MEGABYTES = (2.1,) * 7 + (4.2,) * 2 + (14.7,)
"""Of the shapes of bench.models, in fp32 with 64 slots."""
HALF_LIVES = (1, 3, 10, 30, 100)
_AFTER = 2000  # requests


class Policy(Protocol):
    """Says which model is evicted first."""

    def use(self, model: int, n_loaded: int, *, is_loaded: bool) -> None:
        """Take note of a request."""

    def worth(self, model: int) -> float:
        """Return a number for a loaded model; the one with the lowest is evicted."""

    def evict(self, worth: float) -> None:
        """Take note that a model of this worth was evicted."""


class Lru:
    """The least recently used one first."""

    def __init__(self) -> None:
        """Begin at the first request."""
        self.now = 0
        self.used: dict[int, int] = {}

    def use(self, model: int, n_loaded: int, *, is_loaded: bool) -> None:
        """Remember when it was."""
        self.now += 1
        self.used[model] = self.now

    def worth(self, model: int) -> float:
        """Return when it was used."""
        return self.used[model]

    def evict(self, worth: float) -> None:
        """Do nothing."""


class Gdsf:
    """GreedyDual-Size-Frequency: uses since the load, divided by the size, plus the worth that was evicted last."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.uses: dict[int, int] = {}
        self.worths: dict[int, float] = {}
        self.clock = 0.0

    def use(self, model: int, n_loaded: int, *, is_loaded: bool) -> None:
        """Compute its worth."""
        self.uses[model] = self.uses[model] + 1 if is_loaded else 1
        self.worths[model] = self.clock + self.uses[model] / size(model)

    def worth(self, model: int) -> float:
        """Return what it was at its last use."""
        return self.worths[model]

    def evict(self, worth: float) -> None:
        """Let what stays become older."""
        self.clock = worth


class Ours:
    """service/models/eviction.py."""

    def __init__(self, half_life: int) -> None:
        """Begin with nothing."""
        self.half_life = half_life
        self.counts = eviction.UseCounts(half_life)

    def use(self, model: int, n_loaded: int, *, is_loaded: bool) -> None:
        """Count it."""
        self.counts.use(str(model), n_loaded)

    def worth(self, model: int) -> float:
        """Return its uses for each megabyte."""
        return self.counts.count(str(model)) / size(model)

    def evict(self, worth: float) -> None:
        """Do nothing."""


def size(model: int) -> float:
    """Return the megabytes of a model."""
    return MEGABYTES[model % len(MEGABYTES)]


def simulate(policy: Policy, args: argparse.Namespace) -> tuple[float, float, float, float]:
    """Return shares of requests whose model is loaded: half of the first half, after the change, later; and models."""
    rng = random.Random(1)
    models = list(range(args.models))
    loaded: set[int] = set()
    megabytes, hits, counts = 0.0, [], []
    for i in range(2 * args.requests):
        if i == args.requests:
            rng.shuffle(models)
        model = models[zipf(args.models, rng)]
        hits.append(model in loaded)
        policy.use(model, len(loaded), is_loaded=model in loaded)
        if model not in loaded:
            megabytes += size(model)
            while megabytes > args.memory_mb:
                worth, evicted = min((policy.worth(m), m) for m in loaded)
                loaded.remove(evicted)
                megabytes -= size(evicted)
                policy.evict(worth)
            loaded.add(model)
        counts.append(len(loaded))
    half, n = args.requests // 2, args.requests
    parts = (hits[half:n], hits[n : n + _AFTER], hits[n + half :])
    before, after, later = (sum(part) / len(part) for part in parts)
    return before, after, later, sum(counts[half:n]) / (n - half)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--memory-mb", type=float, default=300.0)
    parser.add_argument("--requests", type=int, default=20_000, help="before the change, and after it")
    args = parser.parse_args()
    policies: dict[str, Callable[[], Policy]] = {"LRU": Lru, "GDSF": Gdsf}
    for half_life in HALF_LIVES:
        policies[f"half-life {half_life}"] = lambda half_life=half_life: Ours(half_life)  # type: ignore[misc]
    print(f"{'':14} loaded   in memory   {_AFTER} requests after the change   later")
    for name, make in policies.items():
        before, after, later, n_loaded = simulate(make(), args)
        print(f"{name:14} {n_loaded:6.0f} {before:11.1%} {after:32.1%} {later:7.1%}", flush=True)


if __name__ == "__main__":
    main()
