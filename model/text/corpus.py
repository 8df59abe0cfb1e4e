"""A text as ids, split into train, validation and test parts, and the batches of (B, T) windows that read a part.

The split is contiguous: train, then validation, then test, so no part of the text is in two of them, not even by an
overlap of windows. Only the set of characters is taken from the whole text, so that every part can be encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import TrainConfig
from model.errors import TextError, TextTooShort
from model.text.decoding import read_text
from model.text.normalization import normalize
from model.text.text_statistics import text_sha256
from model.text.vocab import Vocabulary

Ids = NDArray[np.integer]

MIN_EVALUATION_CHARS = 2
"""The shortest validation or test part: a character, and the one that it predicts."""
_NO_IDS: Ids = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split into parts."""

    vocab: Vocabulary
    train: Ids  # (N,) the start of the text
    val: Ids  # (M,) what follows train
    sha256: str  # of the decoded text in UTF-8
    notes: tuple[str, ...] = ()  # what was changed while the text was decoded
    test: Ids = field(default_factory=lambda: _NO_IDS)  # the end of the text: evaluated once, after the run

    @classmethod
    def from_text(cls, text: str, config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Normalize, encode and split a text.

        Raises:
            TextError: The text is too short for its split, or has too many distinct characters.
        """
        text = normalize(text)
        vocab = Vocabulary.of(text, config.max_vocab)
        ids: Ids = vocab.encode(text).astype(id_type(vocab))
        return cls.from_ids(vocab, ids, text_sha256(text), config, notes)

    @classmethod
    def from_ids(
        cls, vocab: Vocabulary, ids: Ids, sha256: str, config: TrainConfig, notes: Sequence[str] = ()
    ) -> Corpus:
        """Split the ids (N,) of a text. The parts are views of the given array.

        Raises:
            TextTooShort: The text is too short for its split.
        """
        check_lengths([len(ids)], config)
        n_val, n_test = evaluation_sizes(len(ids), config)
        n_train = len(ids) - n_val - n_test
        parts = ids[:n_train], ids[n_train : n_train + n_val], ids[n_train + n_val :]
        return cls(vocab, parts[0], parts[1], sha256, tuple(notes), parts[2])

    @classmethod
    def from_texts(cls, texts: Sequence[str], config: TrainConfig, notes: Sequence[str] = ()) -> Corpus:
        """Join several texts. Each of them is split, so that the end of each is in the validation part.

        A text of a few characters has no validation part of its own; all of it is in the training part.

        Raises:
            TextError: All together are too short for their split, or have too many distinct characters.
        """
        texts = [normalize(text) for text in texts]
        vocab = Vocabulary.of("".join(texts), config.max_vocab)
        check_lengths([len(text) for text in texts], config)
        parts: list[list[Ids]] = [[], [], []]
        for text in texts:
            ids: Ids = vocab.encode(text).astype(id_type(vocab))
            n_val, n_test = evaluation_sizes(len(ids), config)
            cuts = np.split(ids, [len(ids) - n_val - n_test, len(ids) - n_test])
            for part, cut in zip(parts, cuts, strict=True):
                part.append(cut)
        train, val, test = (np.concatenate(part) for part in parts)
        return cls(vocab, train, val, text_sha256("".join(texts)), tuple(notes), test)

    @classmethod
    def from_file(cls, path: Path, config: TrainConfig) -> Corpus:
        """Read, encode and split a text file.

        Raises:
            TextError: The text cannot be used; the error names the file.
        """
        text, notes = read_text(path)
        try:
            return cls.from_text(text, config, notes)
        except TextError as error:
            error.field = f"corpus {path}"
            raise

    @property
    def n_characters(self) -> int:
        """The length of the text."""
        return len(self.train) + len(self.val) + len(self.test)


def id_type(vocab: Vocabulary) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest integer type that holds every id."""
    return np.uint8 if len(vocab) <= 256 else np.uint16


def check_lengths(lengths: Sequence[int], config: TrainConfig) -> None:
    """Check that texts of these lengths, in characters, can be split and trained on.

    Raises:
        TextTooShort: They cannot; the error says how many characters would be enough.
    """
    n_val, n_test = (sum(part) for part in zip(*(evaluation_sizes(n, config) for n in lengths), strict=True))
    n, n_train = sum(lengths), sum(lengths) - n_val - n_test
    needed_to_train = config.batch_size * (config.seq_length + 1)
    can_evaluate = n_val >= MIN_EVALUATION_CHARS and (n_test >= MIN_EVALUATION_CHARS or not config.test_fraction)
    if n_train >= needed_to_train and can_evaluate:
        return
    fractions = [fraction for fraction in (config.val_fraction, config.test_fraction) if fraction]
    needed_to_evaluate = max(int(MIN_EVALUATION_CHARS / fraction) + 1 for fraction in fractions)
    train_fraction = 1 - config.val_fraction - config.test_fraction
    needed = max(int(needed_to_train / train_fraction) + 1, needed_to_evaluate)
    subject = f"the {len(lengths)} texts have" if len(lengths) > 1 else "the text has"
    fits = f"; a batch_size of 1 and a seq_length of {n_train - 1} would fit" if n_train >= 2 and can_evaluate else ""
    raise TextTooShort(
        f"{subject} {n} characters, {n_train} of them in the training part",
        needed=needed,
        expected=f"at least {needed} (batch_size {config.batch_size} x seq_length {config.seq_length}, "
        f"val_fraction {config.val_fraction}): use more text, or a smaller batch_size or seq_length{fits}",
    )


def evaluation_sizes(n_characters: int, config: TrainConfig) -> tuple[int, int]:
    """Return the lengths of the validation and test parts of a text."""
    return int(n_characters * config.val_fraction), int(n_characters * config.test_fraction)


class Streams:
    """Contiguous batching: B rows read the same ids in a circle, at equal distances; each window continues the last.

    A row's position is a function of the step, so that a resumed run needs no stored position. A row that reaches the
    end continues at the start of the ids: the only place in an epoch where the text is not contiguous.
    """

    def __init__(self, ids: Ids, batch_size: int, seq_length: int, device: str = "cpu") -> None:
        """Prepare the batches.

        Args:
            ids: The ids (N,) to read.
            batch_size: B.
            seq_length: T.
            device: Where the windows are needed. A GPU gets a copy of all ids once, so that no step copies text.
        """
        self._starts = np.arange(batch_size, dtype=np.int64)[:, None] * (len(ids) // batch_size)  # (B, 1)
        self._offsets = np.arange(seq_length + 1, dtype=np.int64)[None, :]  # (1, T + 1)
        self._seq_length = seq_length
        self._ids = ids
        self._device_ids: Tensor | None = None
        if device != "cpu":
            wide = ids.astype(np.int32) if ids.dtype == np.uint16 else np.array(ids)
            self._device_ids = torch.from_numpy(wide).to(device)

    def window(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets (B, T) int64 of some rows at a step; targets are the inputs moved by one."""
        positions = (self._starts[rows] + step * self._seq_length + self._offsets) % len(self._ids)
        if self._device_ids is None:
            window = torch.from_numpy(self._ids[positions].astype(np.int64))
        else:
            on_device = torch.from_numpy(positions).to(self._device_ids.device, non_blocking=True)
            window = self._device_ids[on_device].long()
        return window[:, :-1], window[:, 1:]
