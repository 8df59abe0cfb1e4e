"""Reading a text as a corpus: its split into parts, and the batches that read a part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.errors import TextError, TextTooShort
from model.text.corpus import Corpus, Streams
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
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    """The error names the file, what is wrong with it and what was expected."""
    file = tmp_path / "text.txt"
    file.write_bytes(raw)
    with pytest.raises(TextError, match=says) as e:
        Corpus.from_file(file, TrainConfig())
    assert str(file) in str(e.value)
    assert "expected" in str(e.value)


def test_a_missing_text_is_refused(tmp_path: Path) -> None:
    """A path that does not exist, or a folder."""
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(TextError, match="cannot be read"):
            Corpus.from_file(path, TrainConfig())


def test_as_many_characters_as_the_error_says_are_enough() -> None:
    """A text of `needed` characters can be split and trained on."""
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
    """Each row's window continues the row's last window, in a circle; rows are at equal distances."""
    streams = Streams(np.arange(n), b, t)
    x, y = (part.numpy() for part in streams.window(step, slice(0, b)))
    following, _ = (part.numpy() for part in streams.window(step + 1, slice(0, b)))
    assert x.shape == y.shape == (b, t)
    assert np.array_equal(y, (x + 1) % n)
    assert np.array_equal(following[:, 0], y[:, -1])
    assert np.array_equal(x[:, 0], (np.arange(b) * (n // b) + step * t) % n)


def test_rows_can_be_read_separately() -> None:
    """Some rows of a batch are those of the whole batch: threads and processes each read theirs."""
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
    """The text is installed with the requirements and has the expected hash."""
    text = default_text()
    assert len(text) > 5_000_000
    assert "To be, or not to be" in text
    assert text.isascii()


def test_each_of_several_texts_is_split() -> None:
    """The end of each is in the validation part, one vocabulary encodes all, and all of a tiny text is trained on."""
    config = TrainConfig(batch_size=2, seq_length=4)
    both = Corpus.from_texts(["ab" * 100, "cd" * 50], config)
    assert both.vocab.decode(both.train) == "ab" * 90 + "cd" * 45
    assert both.vocab.decode(both.val) == "ab" * 10 + "cd" * 5
    with_tiny = Corpus.from_texts(["ab" * 100, "cdefg"], config)
    assert with_tiny.vocab.decode(with_tiny.train) == "ab" * 90 + "cdefg"
    assert with_tiny.vocab.decode(with_tiny.val) == "ab" * 10
    with pytest.raises(TextError, match="the 2 texts have 18 characters, 17 of them in the training part"):
        Corpus.from_texts(["ab" * 5, "abcdefgh"], config)
