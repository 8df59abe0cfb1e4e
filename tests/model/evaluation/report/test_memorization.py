"""Memorization is counted as defined: shares of items, and the longest run of a text that another one has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation.report import memorization
from model.evaluation.report.memorization import CopiedRun, ItemMemorization, longest_copied_run
from model.stepper.items import GeneratedItem

TEXTS = st.lists(st.integers(0, 2), max_size=40)


def by_definition(text: bytes, training: bytes) -> CopiedRun:
    """The longest run of a text that is in another, by trying all of them."""
    runs = [(n, start) for n in range(1, len(text) + 1) for start in range(len(text) - n + 1)]
    copied = [(n, -start) for n, start in runs if text[start : start + n] in training]
    n, start = max(copied, default=(0, 0))
    return CopiedRun(-start, n)


@given(text=TEXTS, training=TEXTS, chunk=st.integers(1, 50))
def test_the_longest_copied_run_is_that_of_the_definition(text: list[int], training: list[int], chunk: int) -> None:
    """Of texts of every length, wherever the training text is cut into chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "_CHUNK", chunk)
        measured = longest_copied_run(np.array(text, np.uint8), np.array(training, np.uint16))
    assert measured == by_definition(bytes(text), bytes(training))


def test_a_long_copy_is_found_in_a_long_text() -> None:
    """A passage of 700 characters out of two million, at its place and with its length."""
    rng = np.random.default_rng(3)
    training = rng.integers(0, 60, 2_000_000, dtype=np.uint8)
    text = rng.integers(0, 60, 3_000, dtype=np.uint8)
    text[1000:1700] = training[1_048_300:1_049_000]  # across the border of two chunks
    text[999] = 60
    text[1700] = 61
    assert longest_copied_run(text, training) == CopiedRun(1000, 700)


def items(*texts: str, training: set[str] | None) -> list[GeneratedItem]:
    """Generated items, and whether each is a training item."""
    return [GeneratedItem(text, -1.0, None if training is None else text in training) for text in texts]


def test_a_model_that_remembers_no_item_has_the_expected_share() -> None:
    """It generates the items of a list at random, so the held-out ones predict how many are training items."""
    rng = np.random.default_rng(1)
    training, held_out = {f"t{n}" for n in range(900)}, [f"h{n}" for n in range(100)]
    every = [*sorted(training), *held_out, *(f"new{n}" for n in range(500))]
    drawn = items(*(every[i] for i in rng.integers(0, len(every), 20_000)), training=training)
    honest = ItemMemorization.of(drawn, held_out, 900, 100)
    assert honest.training_share is not None
    assert honest.expected_share is not None
    assert honest.expected_error is not None
    assert honest.training_share == pytest.approx(900 / 1500, abs=0.02)
    assert abs(honest.expected_share - honest.training_share) < 4 * honest.expected_error
    copying = ItemMemorization.of([item for item in drawn if item.text not in held_out], held_out, 900, 100)
    assert (copying.n_held_out, copying.expected_share) == (0, 0.0)


def test_what_is_not_known_is_none() -> None:
    """Without hashes there is no share of training items; without the corpus none of held-out ones."""
    blind = ItemMemorization.of(items("a", "a", "b", training=None), None, 9, 1)
    assert (blind.n, blind.n_distinct) == (3, 2)
    assert (blind.training_share, blind.expected_share, blind.expected_error) == (None, None, None)
