"""Which hidden units tell something simple about a text: Karpathy's cells, found instead of looked for.

Each feature is a number by character, known once that character has been read. A unit tells of it as far as its
activation goes with it: Pearson's correlation over the text's characters, whose sign says which way. A short text has
chance correlations, so what is found in one is a reason to look, not a proof. Source of the idea: Karpathy, Johnson and
Fei-Fei, Visualizing and Understanding Recurrent Networks (2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]
_QUOTES = {'"': None, "\u201c": True, "\u201d": False}  # a plain quotation mark turns over, the others open and close


def _inside_quotes(text: str) -> list[float]:
    inside, found = False, []
    for character in text:
        if character in _QUOTES:
            turned = _QUOTES[character]
            inside = not inside if turned is None else turned
        found.append(float(inside))
    return found


def _position_in_line(text: str) -> list[float]:
    at, found = 0, []
    for character in text:
        at = 0 if character == "\n" else at + 1
        found.append(float(at))
    return found


FEATURES: dict[str, tuple[str, Callable[[str], list[float]]]] = {
    "inside_quotes": ("1 inside quotation marks", _inside_quotes),
    "position_in_line": ("characters since the line began", _position_in_line),
    "after_newline": ("1 when a line has just begun", lambda text: [float(c == "\n") for c in text]),
    "inside_word": ("1 when a letter was read", lambda text: [float(c.isalpha()) for c in text]),
    "after_capital": ("1 when a capital letter was read", lambda text: [float(c.isupper()) for c in text]),
}
"""By name: what it counts, and the function of a text that gives it, one number a character."""


def correlations(values: Values, feature: Values) -> Values:
    """Pearson's r of each unit (T, H) with a feature (T,): (H,), 0 where either does not vary."""
    x = values - values.mean(axis=0)
    y = feature - feature.mean()
    scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum())
    r: Values = np.divide(y @ x, scale, out=np.zeros(values.shape[1]), where=scale > 1e-12)
    return r


def ranked(text: str, layers: Sequence[Values], name: str, best: int = 8) -> list[tuple[int, int, float]]:
    """The units that tell most of a feature: (layer, unit, r), the largest |r| first.

    layers: one (T, H) a layer, for the text's T characters. Empty when the feature does not vary in the text.
    """
    feature = np.array(FEATURES[name][1](text))
    if not len(feature) or np.ptp(feature) == 0:
        return []
    found = [
        (layer, unit, float(r))
        for layer, values in enumerate(layers)
        for unit, r in enumerate(correlations(values, feature))
    ]
    found.sort(key=lambda each: -abs(each[2]))
    return found[:best]
