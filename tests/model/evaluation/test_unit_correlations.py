"""Units that follow a feature of a text are ranked first, and each feature is what its description says."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.unit_correlations import FEATURES, correlations, rank_units

TEXT = 'He said "Go.\nNow" and “so” on.\n'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("inside_quotes", "00000000" + "1" * 8 + "0" * 6 + "111" + "0" * 6),
        ("after_newline", "0" * 12 + "1" + "0" * 17 + "1"),
        ("after_capital", "1" + "0" * 8 + "1" + "0" * 3 + "1" + "0" * 17),
        ("inside_word", "1101111001100" + "111001110011001100"),
    ],
)
def test_a_feature_is_what_its_description_says(name: str, expected: str) -> None:
    """By character of a text with both kinds of quotation marks, a capital and two lines."""
    values = FEATURES[name][1](TEXT)
    digits = "".join(f"{v:.0f}" for v in values)
    assert len(values) == len(TEXT)
    assert digits == expected.ljust(len(TEXT), "0")[: len(TEXT)]


def test_the_position_in_a_line_starts_again() -> None:
    """Characters since the line began, the line's end itself being 0."""
    assert FEATURES["position_in_line"][1]("ab\nc\n\n") == [1, 2, 0, 1, 0, 0]


def test_the_unit_that_follows_a_feature_is_found() -> None:
    """Among 60 units of noise in two layers, one that follows the feature and one that opposes it come first."""
    rng = np.random.default_rng(0)
    text = 'a "quoted" word, ' * 20
    feature = np.array(FEATURES["inside_quotes"][1](text))
    layers = [rng.normal(size=(len(text), 30)) for _ in range(2)]
    layers[1][:, 7] = feature * 0.9 + rng.normal(size=len(text)) * 0.05
    layers[0][:, 3] = 0.2 - feature + rng.normal(size=len(text)) * 0.2
    (first, second, *_) = rank_units(text, layers, "inside_quotes")
    assert first[:2] == (1, 7)
    assert first[2] > 0.95
    assert second[:2] == (0, 3)
    assert second[2] < -0.8


def test_correlations_are_numpy_s() -> None:
    """Pearson's r, and 0 where a unit or the feature does not vary."""
    rng = np.random.default_rng(1)
    values, feature = rng.normal(size=(50, 4)), rng.normal(size=50)
    values[:, 2] = 0.3
    r = correlations(values, feature)
    assert r[[0, 1, 3]] == pytest.approx([np.corrcoef(values[:, u], feature)[0, 1] for u in (0, 1, 3)])
    assert r[2] == 0
    assert rank_units("no quotes", [values[:9]], "inside_quotes") == []
