"""Where a request ends, however its bytes arrive."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.server.request_buffer import MAX_HEAD_BYTES, Progress, RequestBuffer

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 5 \r\n\r\nhello"


@given(st.sampled_from([GET, POST]), st.binary(max_size=40), st.lists(st.integers(1, 30), min_size=1))
def test_a_request_is_complete_exactly_when_its_last_byte_is_here(
    request: bytes, rest: bytes, sizes: list[int]
) -> None:
    """However it is cut, nothing is complete before the last byte, and nothing that follows is lost."""
    buffer, sent, i = RequestBuffer(1000), 0, 0
    data = request + rest
    progress = Progress.INCOMPLETE
    while progress is Progress.INCOMPLETE:
        size = sizes[i % len(sizes)]
        i += 1
        before = sent
        progress = buffer.feed(data[sent : sent + size])
        sent = min(sent + size, len(data))
        assert (progress is Progress.COMPLETE) == (sent >= len(request)), (before, sent)
    assert buffer.take() == data[:sent]


def test_a_long_body_is_streamed_and_its_limit_is_exact() -> None:
    """A body of the limit is kept; one byte more is left to the request's thread."""
    for length, expected in ((10, Progress.INCOMPLETE), (11, Progress.STREAMED)):
        buffer = RequestBuffer(10)
        assert buffer.feed(b"PUT /corpora/x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length) is expected


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -1",
        b"Content-Length: 5a",
        b"Content-Length: " + b"9" * 30,
    ],
)
def test_a_length_that_cannot_be_is_left_to_the_parser(field: bytes) -> None:
    """No body is awaited for a length that no parser accepts."""
    assert RequestBuffer(1000).feed(b"POST / HTTP/1.1\r\n" + field + b"\r\n\r\n") is Progress.COMPLETE


def test_a_body_of_unknown_length_is_streamed() -> None:
    """Chunks are read by the request's thread."""
    assert RequestBuffer(10).feed(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n") is Progress.STREAMED


def test_an_endless_head_is_refused() -> None:
    """A head that has not ended after its limit never will."""
    buffer = RequestBuffer(10)
    buffer.feed(b"GET / HTTP/1.1\r\n")
    while buffer.progress is Progress.INCOMPLETE:
        buffer.feed(b"X-A: " + b"a" * 1000 + b"\r\n")
        assert len(buffer) < MAX_HEAD_BYTES + 2000
    assert buffer.progress is Progress.HEAD_TOO_LARGE
