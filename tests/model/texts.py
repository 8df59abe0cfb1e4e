"""Small texts to train on."""

from __future__ import annotations

import random


def words(n: int, seed: int = 0) -> str:
    """Return n words from a short list: a text with something to learn."""
    rng = random.Random(seed)
    return "".join(rng.choice(["tea ", "coffee ", "milk\n", "sugar "]) for _ in range(n))
