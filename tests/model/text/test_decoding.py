"""One decoder for files, uploads and jobs: however a text is cut, it is decoded as a whole."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import TextError
from model.text.decoding import TextDecoder, decode_file, read_text
from model.text.text_statistics import TextStatistics, text_sha256

BYTES = st.one_of(
    st.binary(max_size=40),
    st.text(alphabet="ab\r\n\ufeffé中😀", max_size=40).map(str.encode),
    st.builds(bytes.__add__, st.text(alphabet="aé\r\n", max_size=9).map(str.encode), st.binary(max_size=4)),
)


def decode(data: bytes, cuts: list[int]) -> tuple[str, list[str]] | str:
    """Decode a text in chunks of these sizes: the text and the notes, or the message of the error."""
    decoder, parts = TextDecoder("text"), []
    try:
        for size in cuts:
            parts.append(decoder.decode(data[:size]))
            data = data[size:]
        parts.append(decoder.decode(data, final=True))
    except TextError as e:
        return str(e)
    assert decoder.n_characters == len("".join(parts))
    return "".join(parts), decoder.notes


@given(data=BYTES, cuts=st.lists(st.integers(0, 9), max_size=40))
def test_the_chunks_do_not_matter(data: bytes, cuts: list[int]) -> None:
    """Cut anywhere, also within a character or a line end: the same text, notes and errors."""
    assert decode(data, cuts) == decode(data, [])


@given(data=BYTES)
def test_it_is_the_decoder_of_the_standard_library(data: bytes) -> None:
    """The text is that of Python's utf-8-sig codec with universal newlines, and so is what is refused."""
    result = decode(data, [])
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        assert isinstance(result, str)
        return
    if text and not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        assert result[0] == text
    else:
        assert result == "text: is empty, expected text"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty, expected text"),
        (b"\xef\xbb\xbf", "is empty, expected text"),
        (b"abc\xffdef", "not UTF-8, byte 3 is 0xff (invalid start byte) in line 1, expected UTF-8 text"),
        (
            b"\xef\xbb\xbfa\r\nb\r\xc3(",
            "not UTF-8, byte 8 is 0xc3 (invalid continuation byte) in line 3, expected UTF-8 text",
        ),
        (b"a\nb\xe4\xb8", "not UTF-8, byte 3 is 0xe4 (unexpected end of data) in line 2, expected UTF-8 text"),
        ("abc".encode("utf-16"), "is UTF-16 (byte order mark at byte 0), expected UTF-8"),
        (b"\xfe\xffabc", "is UTF-16 (byte order mark at byte 0), expected UTF-8"),
        ("abc".encode("utf-32"), "is UTF-32 (byte order mark at byte 0), expected UTF-8"),
        (b"\0\0\xfe\xff\0\0\0a", "is UTF-32 (byte order mark at byte 0), expected UTF-8"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_bytes_that_are_no_text_are_refused(data: bytes, message: str, size: int) -> None:
    """The error names the text, the first bad byte, its offset in the file and its line."""
    assert decode(data, [size] * (len(data) // size)) == f"text: {message}"


def test_line_ends_and_byte_order_marks_are_normalized_and_noted(tmp_path: Path) -> None:
    """CR LF and CR become LF, a mark at the start is dropped, and both are noted."""
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(file) == (
        "a\nb\nc\n",
        ["a byte order mark at the start was dropped", "line ends became \\n (1 CR LF, 1 CR)"],
    )


@given(data=BYTES, chunk_bytes=st.integers(1, 9))
def test_a_file_in_chunks_is_the_file(tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk_bytes: int) -> None:
    """`decode_file` yields the text that `read_text` returns, and its statistics are those of the whole text."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_bytes(data)
    decoder, statistics = TextDecoder(f"corpus {file}"), TextStatistics()
    try:
        text, notes = read_text(file)
    except TextError as error:
        with pytest.raises(TextError, match=re.escape(str(error))):
            list(decode_file(file, decoder, chunk_bytes))
        return
    for part in decode_file(file, decoder, chunk_bytes):
        statistics.update(part)
    assert (decoder.n_bytes, decoder.notes) == (len(data), notes)
    assert (statistics.n_characters, statistics.characters) == (len(text), "".join(sorted(set(text))))
    assert statistics.sha256 == text_sha256(text) == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A path that does not exist, or a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(TextError, match="cannot be read") as e:
            read_text(path)
        assert e.value.field == f"corpus {path}"


def test_a_compressed_text_is_decoded_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    """However much a few bytes decompress to: the memory of a reader does not depend on it."""
    path, n = tmp_path / "text.gz", 40 * 2**20
    path.write_bytes(gzip.compress(b"a" * n, 1))
    assert path.stat().st_size < 2**20
    sizes = [len(text) for text in decode_file(path, TextDecoder("text"))]
    assert sum(sizes) == n
    assert max(sizes) <= 5 * 2**20
