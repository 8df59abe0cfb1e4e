"""A text larger than memory should hold -> its ids in a file, which is mapped and not read.

Two passes over the file in pieces: the first finds its characters and its hash, the second writes an id for each
character, one byte or two. The ids are kept under the text's hash, so a second run on the same text maps them at once.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from model.atomic_files import atomic_write
from model.config import TrainConfig
from model.errors import TextError
from model.text.corpus import Corpus, Ids, id_type
from model.text.vocab import Vocabulary, code_points

LARGE_BYTES = 64 * 2**20
"""Texts from this size on go through a file; below it, reading them whole is simpler and fast."""
_PIECE_BYTES = 4 * 2**20
_CODE_POINTS = 0x110000

Encoding = Callable[[str, float], None]
"""Told the stage ("reading" or "encoding") and the part of it that is done, 0..1."""


def corpus_from_file(
    path: Path, config: TrainConfig, cache: Path, watch: Encoding = lambda stage, done: None
) -> Corpus:
    """`Corpus.from_file` for any size: a large text's ids live in `cache`. Raised: TextError naming the file."""
    try:
        large = path.stat().st_size >= LARGE_BYTES
    except OSError:
        large = False  # from_file says why it cannot be read
    return _mapped(path, config, cache, watch) if large else Corpus.from_file(path, config)


def _mapped(path: Path, config: TrainConfig, cache: Path, watch: Encoding) -> Corpus:
    counts = np.zeros(_CODE_POINTS, dtype=np.int64)
    digest = hashlib.sha256()
    notes: set[str] = set()
    for text, done in _pieces(path, notes):
        counts += np.bincount(code_points(text), minlength=_CODE_POINTS)
        digest.update(text.encode())
        watch("reading", done)
    points = np.flatnonzero(counts).astype("<u4")
    try:
        vocab = Vocabulary.of(points.tobytes().decode("utf-32-le"), config.max_vocab)
        ids = _ids(path, vocab, int(counts.sum()), cache / f"{digest.hexdigest()}.ids", watch)
        return Corpus.from_ids(vocab, ids, digest.hexdigest(), config, sorted(notes))
    except TextError as e:
        raise TextError(f"corpus {path}: {e}") from e


def _ids(path: Path, vocab: Vocabulary, n: int, file: Path, watch: Encoding) -> Ids:
    """The mapped ids; written if they are not there whole."""
    kind = np.dtype(id_type(vocab))
    if not file.exists() or file.stat().st_size != n * kind.itemsize:
        with atomic_write(file) as f:
            for text, done in _pieces(path, set()):
                f.write(vocab.encode(text).astype(kind).tobytes())
                watch("encoding", done)
        if file.stat().st_size != n * kind.itemsize:
            raise TextError("changed while it was read, expected a file that stays as it is")
    mapped: Ids = np.memmap(file, dtype=kind, mode="r")
    return mapped


def _pieces(path: Path, notes: set[str]) -> Iterator[tuple[str, float]]:
    """The text in order, normalised as `read_text` does it, and the part of the file that is read.

    Raised: TextError with the offset of the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    size, at, held_cr = max(1, path.stat().st_size), 0, ""
    with open(path, "rb") as f:
        while True:
            raw = f.read(_PIECE_BYTES)
            if not at:
                _refuse_other_encodings(path, raw)
                if raw.startswith(codecs.BOM_UTF8):
                    notes.add("a byte order mark at the start was dropped")
                    raw, at = raw[len(codecs.BOM_UTF8) :], len(codecs.BOM_UTF8)
            held_bytes = len(decoder.getstate()[0])
            try:
                text = held_cr + decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as e:
                offset = at - held_bytes + e.start
                raise TextError(
                    f"corpus {path}: not UTF-8, byte {offset} is 0x{e.object[e.start]:02x} ({e.reason}); expected UTF-8"
                ) from e
            at += len(raw)
            held_cr = "\r" if text.endswith("\r") and raw else ""  # its \n may be in the next piece
            text = text[: len(text) - len(held_cr)]
            if "\r" in text:
                notes.add("line ends became \\n")
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            yield text, at / size
            if not raw:
                return


def _refuse_other_encodings(path: Path, start: bytes) -> None:
    for bom in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # UTF-32's begins with UTF-16's
        if start.startswith(bom):
            raise TextError(f"corpus {path}: is UTF-16 or UTF-32 (byte order mark at byte 0), expected UTF-8")
