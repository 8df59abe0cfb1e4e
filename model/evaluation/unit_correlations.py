"""Which hidden units follow a simple feature of a text, by correlation.

Each feature is a number by character, known once that character has been read. A unit follows it as far as its
activation correlates with it over the text's characters (Pearson's r; the sign gives the direction). A short text has
chance correlations, so a high value there is a hint and no proof. Source of the idea: Karpathy, Johnson and Fei-Fei
(2015), "Visualizing and Understanding Recurrent Networks", who found such units by eye.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]
_OPENS = {'"': None, "\u201c": True, "\u201d": False}  # a plain quotation mark opens or closes, by turns


def _inside_quotes(text: str) -> list[float]:
    inside, values = False, []
    for character in text:
        if character in _OPENS:
            opens = _OPENS[character]
            inside = not inside if opens is None else opens
        values.append(float(inside))
    return values


def _position_in_line(text: str) -> list[float]:
    position, values = 0, []
    for character in text:
        position = 0 if character == "\n" else position + 1
        values.append(float(position))
    return values


FEATURES: dict[str, tuple[str, Callable[[str], list[float]]]] = {
    "inside_quotes": ("inside quotation marks", _inside_quotes),
    "position_in_line": ("characters since the line began", _position_in_line),
    "after_newline": ("after the end of a line", lambda text: [float(c == "\n") for c in text]),
    "inside_word": ("after a letter", lambda text: [float(c.isalpha()) for c in text]),
    "after_capital": ("after a capital letter", lambda text: [float(c.isupper()) for c in text]),
}
"""By name: a description, and the function that returns the feature of a text, one number a character."""


def correlations(values: Values, feature: Values) -> Values:
    """Return Pearson's r of each unit with a feature.

    Args:
        values: Activations, (T, H).
        feature: The feature, (T,).

    Returns:
        The correlations, (H,); 0 where the unit or the feature does not vary.
    """
    x = values - values.mean(axis=0)
    y = feature - feature.mean()
    scale = np.sqrt((x * x).sum(axis=0) * (y * y).sum())
    r: Values = np.divide(y @ x, scale, out=np.zeros(values.shape[1]), where=scale > 1e-12)
    return r


def rank_units(text: str, layers: Sequence[Values], feature: str, count: int = 8) -> list[tuple[int, int, float]]:
    """Return the units that correlate most with a feature, the largest |r| first.

    Args:
        text: The text that was read, T characters.
        layers: The activations of each layer, (T, H).
        feature: A name in FEATURES.
        count: How many units to return.

    Returns:
        (layer, unit, r) of each; empty when the feature does not vary in the text.
    """
    values = np.array(FEATURES[feature][1](text))
    if not len(values) or np.ptp(values) == 0:
        return []
    units = [
        (layer, unit, float(r))
        for layer, activations in enumerate(layers)
        for unit, r in enumerate(correlations(activations, values))
    ]
    units.sort(key=lambda entry: -abs(entry[2]))
    return units[:count]
