"""SplitMix64 (Steele, Lea and Flood, 2014) as a counter-based generator: random bits as a function of key and counter.

No generator state is stored: whoever needs the same bits again computes them again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output function: every bit of the result depends on every bit of z."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_bits(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return 64 random bits for each pair of a key and a counter, broadcast; keys should be mixed ones."""
    return mix(keys + counters * _GOLDEN)
