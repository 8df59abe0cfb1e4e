"""bench.ngram: its probabilities are probabilities, and it learns what a text repeats."""

from __future__ import annotations

import pytest

from bench.ngram import NGram

TEXT = "the cat sat on the mat and the cat ate the rat " * 3


@pytest.mark.parametrize("before", ["", "t", "th", "the ", "the c", "q", "zzz"])
def test_probabilities_add_up_to_one(before: str) -> None:
    """Over all characters of the text and one that is not in it, after any context."""
    model = NGram(TEXT, 4)
    total = sum(model.probability(c, before) for c in [*sorted(set(TEXT)), "Ω"])
    assert total == pytest.approx(1, abs=1e-12)


def test_a_longer_context_predicts_a_repetition_better() -> None:
    """The loss of the same text again falls with the order."""
    losses = [NGram(TEXT, order).loss(TEXT, TEXT) for order in (1, 2, 4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.6
