"""Events of a table are those of its rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.routes.sse import encode_event, encode_rows

TEXTS = st.text(max_size=8) | st.sampled_from(['",', '","', "\\", '\\"', "a,\n b", "],[", "\x7f\u2028", ",\n "])
ROWS = st.lists(st.tuples(st.integers(), TEXTS, st.floats(allow_nan=False), st.sampled_from([True, False, None])))


@given(ROWS, st.sampled_from([None, "item"]))
def test_events_of_columns_are_those_of_their_rows(rows: list[tuple[int, str, float, bool | None]], name: str) -> None:
    """Whatever the texts contain: quotes, backslashes, line breaks, what separates values."""
    keys = ("index", "text", "logprob", 'a "key"')
    columns = {key: [row[i] for row in rows] for i, key in enumerate(keys)}
    assert encode_rows(columns, name=name) == b"".join(
        encode_event(dict(zip(keys, row, strict=True)), name=name) for row in rows
    )
