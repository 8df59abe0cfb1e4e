"""Hidden states as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import StateError
from model.network.state import HiddenState


def state(dtype: str = "f4") -> HiddenState:
    values = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(dtype)
    return HiddenState(values, next_input=7, position=2**40, fingerprint="ab" * 8, numerics="torch-cpu-32")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_bit_comes_back(dtype: str) -> None:
    """Floats, signs of zero and all fields."""
    before = state(dtype)
    before.values[0, 0, 0] = -0.0
    after = HiddenState.from_bytes(before.to_bytes())
    assert after.values.tobytes() == before.values.tobytes()
    assert after.values.dtype == before.values.dtype
    assert (after.next_input, after.position, after.fingerprint, after.numerics) == (7, 2**40, "ab" * 8, "torch-cpu-32")


@given(cut=st.integers(0, 300), noise=st.binary(max_size=8))
def test_damaged_bytes_are_refused(cut: int, noise: bytes) -> None:
    """A truncated or foreign state raises StateError and nothing else."""
    whole = state().to_bytes()
    damaged = whole[: min(cut, len(whole) - 1)] + noise
    if damaged != whole and len(damaged) != len(whole):
        with pytest.raises(StateError):
            HiddenState.from_bytes(damaged)


def test_a_state_fits_only_what_computed_it() -> None:
    """It does not fit other weights or other arithmetic."""
    assert state().fits("ab" * 8, "torch-cpu-32")
    assert not state().fits("cd" * 8, "torch-cpu-32")
    assert not state().fits("ab" * 8, "torch-cuda-32")
