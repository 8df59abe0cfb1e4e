"""Which model is evicted first: the one whose memory was used least, of late.

A model's worth is how often it was used, divided by its bytes. Each use counts half as much after a number of uses of
any models (Lee et al. 2001, "LRFU: a spectrum of policies that subsumes the least recently used and least frequently
used policies"); the division by the size is that of GreedyDual-Size-Frequency (Cherkasova 1998). So a model that one
request names does not replace one that many name, a large one must be used as much as all the small ones in whose place
it is, and what was popular yesterday is soon evicted.
"""

from __future__ import annotations

import math
from collections import OrderedDict

HALF_LIFE = 10
"""Uses for each model in memory, after which a use counts half: `python -m bench.eviction` compares it with others."""
_MAX_COUNTED = 10_000


class UseCounts:
    """How often models were used of late, also those that are not in memory. The caller has a lock."""

    def __init__(self, half_life: int = HALF_LIFE) -> None:
        """Count nothing yet.

        Args:
            half_life: Uses for each model in memory, after which a use counts half.
        """
        self._now = 0  # uses of all models
        self._uses_per_model = half_life
        self._half_life = float(half_life)
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # the count, and when it was that

    def use(self, key: str, n_loaded: int) -> None:
        """Count a use of a model.

        Args:
            key: Which one.
            n_loaded: The number of models in memory.
        """
        self._now += 1
        self._half_life = float(self._uses_per_model * max(1, n_loaded))
        self._counts[key] = (self.count(key) + 1.0, self._now)
        self._counts.move_to_end(key)
        if len(self._counts) > _MAX_COUNTED:
            self._counts.popitem(last=False)

    def count(self, key: str) -> float:
        """Return how often a model was used of late."""
        count, then = self._counts.get(key, (0.0, self._now))
        return count * math.exp2((then - self._now) / self._half_life)
