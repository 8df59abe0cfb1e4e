"""A memory-mapped corpus is the corpus that is read as a whole."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from model.config import ModelConfig, TrainConfig
from model.errors import TextError
from model.text import memory_map
from model.text.corpus import Corpus
from model.text.memory_map import LARGE_BYTES, is_large, read_corpora, read_corpus
from model.training.loop import fit
from tests.model.texts import words

CONFIG = TrainConfig(steps=20, batch_size=4, seq_length=16, validations=2)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any text counts as large, and is read in chunks that cut characters and line ends in two."""
    monkeypatch.setattr(memory_map, "LARGE_BYTES", 0)
    monkeypatch.setattr(memory_map, "_CHUNK_BYTES", 7)


@pytest.mark.parametrize(
    "text", [words(300), "häßlich — 日本語\r\nzwei\rdrei\n" * 60, "\ufeff" + "mark it\n" * 90, "ab\r" * 90]
)
def test_it_is_the_same_corpus(tmp_path: Path, text: str) -> None:
    """Ids, split, vocabulary, hash and notes are those of a text that was read as a whole."""
    file = tmp_path / "text.txt"
    file.write_bytes(text.encode())
    mapped, whole = read_corpus(file, CONFIG, tmp_path / "texts"), Corpus.from_file(file, CONFIG)
    assert mapped.sha256 == whole.sha256
    assert mapped.vocab == whole.vocab
    assert np.array_equal(mapped.train, whole.train)
    assert np.array_equal(mapped.val, whole.val)
    assert mapped.notes == whole.notes
    assert isinstance(mapped.train.base, np.memmap)
    assert mapped.train.dtype == np.uint8


def test_many_characters_take_two_bytes(tmp_path: Path) -> None:
    """More than 256 distinct characters: uint16."""
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(0x4E00 + i % 300) for i in range(900)))
    corpus = read_corpus(file, CONFIG, tmp_path / "texts")
    assert corpus.train.dtype == np.uint16
    assert corpus.vocab.decode(corpus.train[:300]) == file.read_text()[:300]


def test_the_ids_are_written_once(tmp_path: Path) -> None:
    """A second run on the same text maps the cached ids; progress is reported for both stages."""
    file, stages = tmp_path / "text.txt", []
    file.write_text(words(300))
    read_corpus(file, CONFIG, tmp_path / "texts", lambda stage, done: stages.append((stage, done)))
    assert {stage for stage, _ in stages} == {"reading", "encoding"}
    assert stages[-1] == ("encoding", 1.0)
    stages.clear()
    read_corpus(file, CONFIG, tmp_path / "texts", lambda stage, done: stages.append((stage, done)))
    assert {stage for stage, _ in stages} == {"reading"}
    (ids,) = (tmp_path / "texts").iterdir()
    ids.write_bytes(ids.read_bytes()[:-1])
    assert read_corpus(file, CONFIG, tmp_path / "texts").n_characters == len(words(300))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"abcdefgh\xffdef", "not UTF-8, byte 8 is 0xff"),
        ("abcdeé".encode()[:-1], "not UTF-8, byte 5 is 0xc3"),
        ("abc".encode("utf-16"), "UTF-16"),
        (b"a" * 500, "1 distinct characters"),
        (b"abab", "expected at least"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(tmp_path: Path, raw: bytes, says: str) -> None:
    """With the file's name, also where the bad byte is at the edge of a chunk."""
    file = tmp_path / "text.txt"
    file.write_bytes(raw)
    with pytest.raises(TextError, match=says) as e:
        read_corpus(file, CONFIG, tmp_path / "texts")
    assert str(file) in str(e.value)


def test_training_from_the_map_is_training(tmp_path: Path) -> None:
    """The same checkpoint as from memory."""
    file = tmp_path / "text.txt"
    file.write_text(words(800))
    corpora = read_corpus(file, CONFIG, tmp_path / "texts"), Corpus.from_file(file, CONFIG)
    model = ModelConfig(len(corpora[0].vocab), n_hidden=8, n_embed=4)
    paths = [fit(c, model, CONFIG, tmp_path / str(i)) for i, c in enumerate(corpora)]
    assert paths[0].name == paths[1].name


def test_a_compressed_text_is_large_by_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes that count are those before compression, also of several texts and of several gzip members."""
    monkeypatch.setattr(memory_map, "LARGE_BYTES", LARGE_BYTES)
    half, whole = tmp_path / "half.gz", tmp_path / "whole.gz"
    member = gzip.compress(b"ab\n" * (LARGE_BYTES // 6 + 1), 1)
    half.write_bytes(member)
    whole.write_bytes(member * 2)
    assert whole.stat().st_size < LARGE_BYTES // 10
    assert not is_large([half])
    assert is_large([half, half])
    assert is_large([whole])
    assert is_large(["x" * (LARGE_BYTES // 2), half])
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(member[:100])
    assert not is_large([damaged, tmp_path / "missing"])
    corpus = read_corpora([whole], lambda _sizes, _n: TrainConfig(batch_size=1, seq_length=2), tmp_path / "cache")
    assert isinstance(corpus.train.base, np.memmap) or isinstance(corpus.train, np.memmap)
