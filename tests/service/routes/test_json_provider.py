"""JSON answers are what json.dumps makes, and a large one holds up no other thread."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from service.routes import json_provider
from service.routes.json_provider import JsonProvider

PROVIDER = JsonProvider(Flask(__name__))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=9) | st.dictionaries(st.text(), v, max_size=4), max_leaves=60
)


@given(value=VALUES)
def test_it_is_what_the_standard_library_makes(value: Any) -> None:
    """Whatever is nested in whatever, with lists far longer than a part."""
    parts, json_provider._PART = json_provider._PART, 3
    try:
        assert PROVIDER.dumps(value) == json.dumps(value, ensure_ascii=False)
        compact = {"separators": (",", ":")}
        assert PROVIDER.dumps(value, **compact) == json.dumps(value, ensure_ascii=False, **compact)  # type: ignore[arg-type]
    finally:
        json_provider._PART = parts


@pytest.mark.parametrize("results", [1, 40])
def test_other_threads_run_meanwhile(results: int) -> None:
    """Another thread runs Python again and again while a large answer is encoded; a single call would let it wait."""
    entry = {"logprob": -1.25, "top": [["a", -1.25, 0.3], ["b", -2.5, 0.1], ["c", -3.75, 0.02]]}
    answer = {"results": [{"logprobs": [entry] * (80_000 // results)} for _ in range(results)]}
    began, ended, turns = threading.Event(), threading.Event(), 0

    def run() -> None:
        nonlocal turns
        began.set()
        while not ended.wait(0.0005):
            turns += 1

    thread = threading.Thread(target=run)
    thread.start()
    began.wait()
    turns = 0
    text = PROVIDER.dumps(answer)
    seen = turns
    ended.set()
    thread.join()
    assert seen >= 8
    assert json.loads(text) == answer
