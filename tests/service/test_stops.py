"""Stop strings: how a text was cut into pieces changes nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.engine.stop_strings import StopScanner

TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=10))
def test_cuts_change_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    """In any pieces, the scanner shows what a character-by-character reading shows."""
    expected, met = text, False
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            expected, met = text[: end - len(max(complete, key=len))], True
            break
    scanner = StopScanner(stops)
    bounds = sorted({0, len(text), *[c for c in cuts if c < len(text)]})
    shown, stopped = "", False
    for a, b in pairwise(bounds):
        more, stopped = scanner.feed(text[a:b])
        shown += more
        if stopped:
            break
        assert len(shown) + scanner.held == b
        assert text.startswith(shown)
    if not stopped:
        shown += scanner.flush()
    assert (shown, stopped) == (expected, met)


@given(text=TEXT, stops=STOPS)
def test_nothing_is_held_longer_than_it_must(text: str, stops: list[str]) -> None:
    """What is held back is always the beginning of some stop string."""
    scanner = StopScanner(stops)
    shown, met = scanner.feed(text)
    if not met:
        held = text[len(shown) :]
        assert not held or any(s.startswith(held) for s in stops)
