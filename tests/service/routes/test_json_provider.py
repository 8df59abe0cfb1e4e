"""JSON answers are what json.dumps makes, and a large one holds up no other thread."""

from __future__ import annotations

import json
import threading
import tracemalloc
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from service.inspection.encoded_list import EncodedList
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


@given(elements=st.lists(st.lists(VALUES, max_size=4), max_size=4))
def test_a_list_that_was_encoded_as_it_came_is_the_same_list(elements: list[list[Any]]) -> None:
    """In whichever parts its elements came, and wherever in an answer it is."""
    encoded = EncodedList()
    for part in elements:
        encoded.extend(part)
    whole = [element for part in elements for element in part]
    text = PROVIDER.dumps({"before": 1, "results": [{"index": 0, "list": encoded}], "list": encoded})
    assert json.loads(text) == {"before": 1, "results": [{"index": 0, "list": whole}], "list": whole}


def test_a_list_that_was_encoded_takes_little_memory() -> None:
    """An answer that is made for a minute, or is never read, holds a quarter of what its objects would take."""

    def entry(i: int) -> dict[str, Any]:
        top = [[chr(97 + k), round(-i - k - 0.12345, 5), round(1 / (i + k + 1), 5)] for k in range(3)]
        return {"logprob": round(-i - 0.12345, 5), "probability": round(1 / (i + 1), 5), "top": top}

    def taken(collected: Any) -> int:
        tracemalloc.start()
        for i in range(0, 20_000, 200):
            collected.extend([entry(i + j) for j in range(200)])
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size

    assert taken(EncodedList()) < taken([]) / 4


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
