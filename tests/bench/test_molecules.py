"""The parts of bench.molecules that need no chemistry."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench import molecules


def test_similarity_is_that_of_the_bits() -> None:
    """Common bits of all bits, the mean of all pairs and of the nearest ones."""
    own = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
    other = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], np.float32)
    assert molecules._similarity(own, other, "mean") == pytest.approx((1 + 1 / 4 + 0 + 2 / 3) / 4)
    assert molecules._similarity(own, other, "max") == pytest.approx((1 + 2 / 3) / 2)


def test_counts_are_compared_by_their_angle() -> None:
    """Equal shares are 1, nothing in common is 0."""
    assert molecules._cosine(Counter(a=1, b=2), Counter(a=3, b=6)) == pytest.approx(1)
    assert molecules._cosine(Counter(a=1), Counter(b=1)) == 0
    assert molecules._cosine(Counter(a=1, b=1), Counter(a=1)) == pytest.approx(0.5**0.5)


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without rdkit it ends at once."""
    monkeypatch.setitem(sys.modules, "rdkit", None)
    parser = argparse.ArgumentParser()
    molecules.add_arguments(parser)
    with pytest.raises(SystemExit, match="pip install rdkit"):
        molecules.run(parser.parse_args([str(tmp_path)]), tmp_path)
