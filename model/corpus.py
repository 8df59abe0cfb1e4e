"""A text file -> train and validation streams of (B, T) windows that continue each other.

The split is contiguous: the validation part is the end of the text, so nothing of it is seen in training, not even
by overlap. Only the set of characters is taken from the whole text, so that every part can be read.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.config import TrainConfig
from model.errors import TextError
from model.vocab import Vocabulary

Ids = NDArray[np.integer]


def read_text(path: Path) -> tuple[str, list[str]]:
    """A UTF-8 file -> its text with plain newlines, and notes on what was normalised.

    Raised: TextError when the file is missing, empty or not UTF-8 (with the byte offset of the first bad byte).
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise TextError(f"corpus {path}: cannot be read ({e.strerror}), expected a text file") from e
    notes = []
    for bom, name in (
        (codecs.BOM_UTF32_LE, "UTF-32"),
        (codecs.BOM_UTF16_LE, "UTF-16"),
        (codecs.BOM_UTF16_BE, "UTF-16"),
    ):
        if raw.startswith(bom):
            raise TextError(f"corpus {path}: is {name} (byte order mark at byte 0), expected UTF-8")
    offset = 0
    if raw.startswith(codecs.BOM_UTF8):
        offset = len(codecs.BOM_UTF8)
        notes.append("a byte order mark at the start was dropped")
    try:
        text = raw[offset:].decode("utf-8")
    except UnicodeDecodeError as e:
        at = e.start + offset
        raise TextError(
            f"corpus {path}: not UTF-8, byte {at} is 0x{raw[at]:02x} ({e.reason}); expected UTF-8 text"
        ) from e
    if "\r" in text:
        crlf, text = text.count("\r\n"), text.replace("\r\n", "\n")
        lone, text = text.count("\r"), text.replace("\r", "\n")
        notes.append(f"line ends became \\n ({crlf} CR LF, {lone} CR)")
    if not text:
        raise TextError(f"corpus {path}: is empty, expected text")
    return text, notes


def text_sha256(text: str) -> str:
    """The identity of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split; `train` and `val` are views of one array."""

    vocab: Vocabulary
    train: Ids  # (N,) the start of the text
    val: Ids  # (M,) the end of the text, in order after train
    sha256: str  # of the normalised text in UTF-8
    notes: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, text: str, config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Raised: TextError when the text is too short for its split or has too many distinct characters."""
        return cls.from_texts([text], config, notes)

    @classmethod
    def from_texts(cls, texts: Sequence[str], config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Several texts as one: each is split, so that the end of each of them validates.

        Raised: TextError when a text is too short to be split, all are too short to be trained on, or they have too
        many distinct characters.
        """
        vocab = Vocabulary.of("".join(texts), config.max_vocab)
        check_lengths([len(text) for text in texts], config)
        dtype = np.uint8 if len(vocab) <= 256 else np.uint16
        parts: list[Ids] = [vocab.encode(text).astype(dtype) for text in texts]
        cuts = [len(ids) - _validating(len(ids), config) for ids in parts]
        train = np.concatenate([ids[:cut] for ids, cut in zip(parts, cuts, strict=True)])
        val = np.concatenate([ids[cut:] for ids, cut in zip(parts, cuts, strict=True)])
        return cls(vocab, train, val, text_sha256("".join(texts)), tuple(notes))

    @classmethod
    def from_file(cls, path: Path, config: TrainConfig) -> Corpus:
        """Raised: TextError naming the file."""
        text, notes = read_text(path)
        try:
            return cls.from_text(text, config, notes)
        except TextError as e:
            raise TextError(f"corpus {path}: {e}") from e

    @property
    def n_characters(self) -> int:
        return len(self.train) + len(self.val)


def check_lengths(lengths: Sequence[int], config: TrainConfig) -> None:
    """Whether texts of so many characters can be trained on. Raised: TextError saying what they would need."""
    total, n_train = sum(lengths), sum(n - _validating(n, config) for n in lengths)
    need_train, need_each = config.batch_size * (config.seq_length + 1), int(2 / config.val_fraction)
    shortest = min(lengths)
    if n_train < need_train or _validating(shortest, config) < 2:
        whose = "the text has" if len(lengths) == 1 else f"the {len(lengths)} texts (the shortest of {shortest}) have"
        needed = max(int(need_train / (1 - config.val_fraction)), need_each) + 1
        each = f", and {need_each + 1} in each text" if len(lengths) > 1 else ""
        raise TextError(
            f"{whose} {total} characters, {n_train} of them to train on; expected at least {needed}{each} "
            f"(batch_size {config.batch_size} x seq_length {config.seq_length}, val_fraction {config.val_fraction}"
            "): give it more text, or a smaller batch_size or seq_length"
        )


def _validating(n_characters: int, config: TrainConfig) -> int:
    return int(n_characters * config.val_fraction)


def windows(ids: Ids, batch_size: int, seq_length: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """One pass over a text as B contiguous streams: yields x, y (B, T), y being x moved on by one.

    Row b of a window continues row b of the window before, so a state can be carried over. The last window may be
    shorter than T; what is left over after B equal streams (fewer than B characters) is not read.
    """
    length = (len(ids) - 1) // batch_size  # characters to predict in each stream
    starts = np.arange(batch_size)[:, None] * length
    for t in range(0, length, seq_length):
        width = min(seq_length, length - t)
        index = starts + t + np.arange(width + 1)[None, :]
        chunk = ids[index].astype(np.int64)
        yield chunk[:, :-1], chunk[:, 1:]
