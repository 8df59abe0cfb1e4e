"""Stop strings: how a text is cut into chunks changes nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.engine.stop_strings import StopScanner

TEXT = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 40), max_size=10), skip=st.just(0) | st.integers(0, 45))
def test_cuts_change_nothing(text: str, stops: list[str], cuts: list[int], skip: int) -> None:
    """In any chunks, the scanner returns what a character-by-character search returns, after characters it skips."""
    expected, expected_stop = text, False
    for end in range(1, len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s) and end - len(s) >= skip]
        if complete:
            expected, expected_stop = text[: end - len(max(complete, key=len))], True
            break
    scanner = StopScanner(stops, skip)
    bounds = sorted({0, len(text), *[c for c in cuts if c < len(text)]})
    sent, is_stopped = "", False
    for a, b in pairwise(bounds):
        more, is_stopped = scanner.feed(text[a:b])
        sent += more
        if is_stopped:
            break
        assert len(sent) + scanner.held_chars == b
        assert text.startswith(sent)
    if not is_stopped:
        sent += scanner.flush()
    assert (sent, is_stopped) == (expected, expected_stop)


@given(text=TEXT, stops=STOPS)
def test_nothing_is_held_back_longer_than_necessary(text: str, stops: list[str]) -> None:
    """What is held back is always the beginning of some stop string."""
    scanner = StopScanner(stops)
    sent, is_stopped = scanner.feed(text)
    if not is_stopped:
        held = text[len(sent) :]
        assert not held or any(s.startswith(held) for s in stops)
