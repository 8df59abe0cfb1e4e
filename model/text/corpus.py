"""A text file -> train, validation and test parts, and the streams of (B, T) windows that continue each other.

The split is contiguous: train, then validation, then test, so nothing of a later part is seen in training, not even
by overlap. Only the set of characters is taken from the whole text, so that every part can be read.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import TrainConfig
from model.errors import TextError
from model.text.vocab import Vocabulary

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


_NONE: Ids = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split; `train`, `val` and `test` are views of one array."""

    vocab: Vocabulary
    train: Ids  # (N,) the start of the text
    val: Ids  # (M,) what follows train
    sha256: str  # of the normalised text in UTF-8
    notes: tuple[str, ...] = ()
    test: Ids = field(default_factory=lambda: _NONE)  # the end of the text: looked at once, after a run

    @classmethod
    def from_text(cls, text: str, config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Raised: TextError when the text is too short for its split or has too many distinct characters."""
        vocab = Vocabulary.of(text, config.max_vocab)
        ids: Ids = vocab.encode(text).astype(id_type(vocab))
        return cls.from_ids(vocab, ids, text_sha256(text), config, notes)

    @classmethod
    def from_ids(
        cls, vocab: Vocabulary, ids: Ids, sha256: str, config: TrainConfig, notes: Sequence[str] = ()
    ) -> Corpus:
        """Split ids (N,). Raised: TextError when they are too few, with sizes that would fit."""
        check_lengths([len(ids)], config)
        n_val, n_test = _held_out(len(ids), config)
        n_train = len(ids) - n_val - n_test
        parts = ids[:n_train], ids[n_train : n_train + n_val], ids[n_train + n_val :]
        return cls(vocab, parts[0], parts[1], sha256, tuple(notes), parts[2])

    @classmethod
    def from_texts(cls, texts: Sequence[str], config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Several texts as one: each is split, so that the end of each of them validates.

        Raised: TextError when a text is too short to be split, all are too short to be trained on, or they have too
        many distinct characters.
        """
        vocab = Vocabulary.of("".join(texts), config.max_vocab)
        check_lengths([len(text) for text in texts], config)
        parts: list[list[Ids]] = [[], [], []]
        for text in texts:
            ids: Ids = vocab.encode(text).astype(id_type(vocab))
            n_val, n_test = _held_out(len(ids), config)
            cuts = np.split(ids, [len(ids) - n_val - n_test, len(ids) - n_test])
            for part, cut in zip(parts, cuts, strict=True):
                part.append(cut)
        train, val, test = (np.concatenate(part) for part in parts)
        return cls(vocab, train, val, text_sha256("".join(texts)), tuple(notes), test)

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
        return len(self.train) + len(self.val) + len(self.test)


def id_type(vocab: Vocabulary) -> type[np.uint8] | type[np.uint16]:
    """The smallest type that holds every id."""
    return np.uint8 if len(vocab) <= 256 else np.uint16


def check_lengths(lengths: Sequence[int], config: TrainConfig) -> None:
    """Whether texts of so many characters can be trained on. Raised: TextError saying what they would need."""
    held_out = [_held_out(n, config) for n in lengths]
    n, n_train = sum(lengths), sum(lengths) - sum(map(sum, held_out))
    n_val, n_test = (min(part) for part in zip(*held_out, strict=True))  # of the shortest text
    need_train = config.batch_size * (config.seq_length + 1)
    if n_train >= need_train and n_val >= 2 and (n_test >= 2 or not config.test_fraction):
        return
    need_each = max(
        int(2 / fraction) + 1 if fraction else 0 for fraction in (config.val_fraction, config.test_fraction)
    )
    needed = max(int(need_train / (1 - config.val_fraction - config.test_fraction)) + 1, need_each)
    fits = f"; a batch_size of 1 and a seq_length of {n_train - 1} would fit" if n_train >= 2 and n_val >= 2 else ""
    several = len(lengths) > 1
    whose = f"the {len(lengths)} texts (the shortest of {min(lengths)}) have" if several else "the text has"
    raise TextError(
        f"{whose} {n} characters, {n_train} of them to train on; expected at least {needed}"
        f"{f', and {need_each} in each text' if several else ''} (batch_size {config.batch_size} x seq_length "
        f"{config.seq_length}, val_fraction {config.val_fraction}): give it more text, or a smaller batch_size or "
        f"seq_length{fits}"
    )


def _held_out(n_characters: int, config: TrainConfig) -> tuple[int, int]:
    """How many characters of a text validate, and how many test."""
    return int(n_characters * config.val_fraction), int(n_characters * config.test_fraction)


class Streams:
    """A text as B rows that read it round and round, equally far apart: window n of a row continues its window n - 1.

    What a row reads at a step is a function of the step, so a run that goes on needs no place to be stored. A row that
    comes to the end goes on at the start: the one place in a pass where the text does not follow.
    """

    def __init__(self, ids: Ids, batch_size: int, seq_length: int, device: str = "cpu") -> None:
        self._starts = np.arange(batch_size, dtype=np.int64)[:, None] * (len(ids) // batch_size)
        self._reach = np.arange(seq_length + 1, dtype=np.int64)[None, :]
        self._seq_length = seq_length
        self._ids = ids
        self._resident: Tensor | None = None
        if device != "cpu":  # the whole text lives on the device: nothing but a step's number crosses over
            wide = ids.astype(np.int32) if ids.dtype == np.uint16 else np.array(ids)
            self._resident = torch.from_numpy(wide).to(device)

    def window(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """x, y (B, T) int64 of some rows at a step; y is x moved on by one."""
        at = (self._starts[rows] + step * self._seq_length + self._reach) % len(self._ids)
        if self._resident is None:
            chunk = torch.from_numpy(self._ids[at].astype(np.int64))
        else:
            chunk = self._resident[torch.from_numpy(at).to(self._resident.device, non_blocking=True)].long()
        return chunk[:, :-1], chunk[:, 1:]
