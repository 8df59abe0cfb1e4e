"""Scorer a text, splitting it, walking through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import TextError, TextTooShort
from model.text.corpus import Corpus, Streams
from model.text.decoding import read_text
from model.text.default_text import default_text
from model.text.text_statistics import text_sha256


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc\xffdef", "not UTF-8, byte 3 is 0xff"),
        (b"\xef\xbb\xbfab\xc3(", "not UTF-8, byte 5 is 0xc3"),
        ("abc".encode("utf-16"), "is UTF-16"),
        ("abc".encode("utf-32"), "is UTF-32"),
        (b"abcabc" * 10, "expected at least 1156"),
        (b"a" * 5000, "1 distinct characters"),
    ],
)
def test_a_text_that_cannot_be_used_is_said(tmp_path: Path, raw: bytes, says: str) -> None:
    """Each names the file, what is wrong with it and what was expected."""
    file = tmp_path / "text.txt"
    file.write_bytes(raw)
    with pytest.raises(TextError, match=says) as e:
        Corpus.from_file(file, TrainConfig())
    assert str(file) in str(e.value)
    assert "expected" in str(e.value)


def test_a_missing_text_is_said(tmp_path: Path) -> None:
    """A path that leads nowhere, or to a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(TextError, match="cannot be read"):
            Corpus.from_file(path, TrainConfig())


def test_line_ends_and_byte_order_marks_are_normalised_and_said(tmp_path: Path) -> None:
    """CR LF and CR become a newline, a mark at the start is dropped, and both are noted."""
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    text, notes = read_text(file)
    assert text == "a\nb\nc\n"
    assert notes == ["a byte order mark at the start was dropped", "line ends became \\n (1 CR LF, 1 CR)"]


def test_the_smallest_text_that_is_promised_is_enough(tmp_path: Path) -> None:
    """The size that the error asks for works."""
    config = TrainConfig(batch_size=3, seq_length=7)
    for n in range(2, 200):
        try:
            Corpus.from_text("ab" * n, config)
        except TextTooShort as e:
            needed = e.needed
    Corpus.from_text(("ab" * needed)[:needed], config)


def test_the_validation_part_is_the_end() -> None:
    """The split is contiguous: train then val is the text, and val is its last tenth."""
    text = "".join(chr(97 + i % 26) for i in range(10000))
    corpus = Corpus.from_text(text, TrainConfig())
    assert corpus.vocab.decode(np.concatenate([corpus.train, corpus.val])) == text
    assert len(corpus.val) == 1000
    assert corpus.sha256 == text_sha256(text)


@given(n=st.integers(24, 300), b=st.integers(1, 7), t=st.integers(1, 11), step=st.integers(0, 200))
def test_windows_continue_each_other(n: int, b: int, t: int, step: int) -> None:
    """Row by row each window goes on where the one before ended, round the text; rows are equally far apart."""
    streams = Streams(np.arange(n), b, t)
    x, y = (part.numpy() for part in streams.window(step, slice(0, b)))
    following, _ = (part.numpy() for part in streams.window(step + 1, slice(0, b)))
    assert x.shape == y.shape == (b, t)
    assert np.array_equal(y, (x + 1) % n)
    assert np.array_equal(following[:, 0], y[:, -1])
    assert np.array_equal(x[:, 0], (np.arange(b) * (n // b) + step * t) % n)


def test_rows_can_be_read_apart() -> None:
    """The rows of a part of a batch are those of the whole batch: what threads and processes share."""
    streams = Streams(np.arange(100), 6, 5)
    whole, _ = streams.window(3, slice(0, 6))
    parts = [streams.window(3, slice(i, i + 2))[0] for i in (0, 2, 4)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_the_test_part_is_the_very_end() -> None:
    """With a test part the order is train, validation, test, and together they are the text."""
    text = "".join(chr(97 + i % 26) for i in range(10000))
    corpus = Corpus.from_text(text, TrainConfig(test_fraction=0.05))
    assert (len(corpus.val), len(corpus.test)) == (1000, 500)
    assert corpus.vocab.decode(np.concatenate([corpus.train, corpus.val, corpus.test])) == text


def test_the_default_text_is_the_plays() -> None:
    """The text comes with the installation and is the one that its hash names."""
    text = default_text()
    assert len(text) > 5_000_000
    assert "To be, or not to be" in text
    assert text.isascii()


def test_several_texts_are_split_each(tmp_path: Path) -> None:
    """The end of each validates, one vocabulary reads all, and a text too short for its split is said."""
    config = TrainConfig(batch_size=2, seq_length=4)
    both = Corpus.from_texts(["ab" * 100, "cd" * 50], config)
    assert both.vocab.decode(both.train) == "ab" * 90 + "cd" * 45
    assert both.vocab.decode(both.val) == "ab" * 10 + "cd" * 5
    with pytest.raises(TextError, match=r"the 2 texts \(the shortest of 5\) have 205 .* and 21 in each text"):
        Corpus.from_texts(["ab" * 100, "cdefg"], config)
