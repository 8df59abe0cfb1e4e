"""A text as ids, split into train, validation and test parts, and the batches of (B, T) windows that read a part.

The split is contiguous: train, then validation, then test, so no part of the text is in two of them, not even by an
overlap of windows. Only the set of characters is taken from the whole text, so that every part can be encoded.
"""

from __future__ import annotations

import math
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
from model.text.items.layout import TEXT, ItemLayout
from model.text.items.record import ItemRecord
from model.text.items.splitting import LEFT_OUT, SplittableItems
from model.text.items.streams import ItemStreams
from model.text.normalization import normalize
from model.text.text_statistics import text_sha256
from model.text.vocab import Vocabulary

Ids = NDArray[np.integer]

MIN_EVALUATION_CHARS = 2
"""The shortest validation or test part: a character, and the one that it predicts."""
_DIGITS = str.maketrans(dict.fromkeys("123456789", "0"))
_ENCODED_ITEMS = 100_000  # at once: encoding takes up to 17 bytes for each character
_NO_IDS: Ids = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class CorpusItems:
    """The items of a list, beside their ids: what a checkpoint records of them, and what advice needs."""

    record: ItemRecord
    n_patterns: int  # different items when every digit is replaced by 0
    longest: int  # characters
    mean_length: float


@dataclass(frozen=True)
class Corpus:
    """A text as ids, split into parts.

    The parts of a list have its items one after the other, each after the id of the vocabulary's `end`.
    """

    vocab: Vocabulary
    train: Ids  # (N,) the start of the text
    val: Ids  # (M,) what follows train
    sha256: str  # of the decoded text in UTF-8
    notes: tuple[str, ...] = ()  # what was changed while the text was decoded
    test: Ids = field(default_factory=lambda: _NO_IDS)  # the end of the text: evaluated once, after the run
    items: CorpusItems | None = None  # of a list; None for a text

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
        sizes = TextSizes([len(ids)])
        check_lengths(sizes, config)
        ((n_train, n_val, _),) = sizes.parts(config)
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
        sizes = TextSizes([len(text) for text in texts])
        check_lengths(sizes, config)
        parts: list[list[Ids]] = [[], [], []]
        for text, (n_train, n_val, _) in zip(texts, sizes.parts(config), strict=True):
            ids: Ids = vocab.encode(text).astype(id_type(vocab))
            for part, cut in zip(parts, np.split(ids, [n_train, n_train + n_val]), strict=True):
                part.append(cut)
        train, val, test = (np.concatenate(part) for part in parts)
        return cls(vocab, train, val, text_sha256("".join(texts)), tuple(notes), test)

    @classmethod
    def from_items(
        cls, split: SplittableItems, layout: ItemLayout, config: TrainConfig, sha256: str, notes: Sequence[str] = ()
    ) -> Corpus:
        """Split and encode the items of a list.

        Raises:
            TextError: There are too few for the split, or too many distinct characters.
        """
        check_lengths(split, config)
        vocab = Vocabulary.of(split.alphabet, config.max_vocab, split.end)
        part_of = split.part_of(config)
        parts, counts = list[Ids](), list[int]()
        for part in range(3):
            places = np.flatnonzero(part_of == part).tolist()
            counts.append(len(places))
            pieces = [
                vocab.encode("".join([split.end + split.items[i] for i in places[n : n + _ENCODED_ITEMS]]))
                for n in range(0, len(places), _ENCODED_ITEMS)
            ]
            part_ids: Ids = np.concatenate([_NO_IDS, *pieces]).astype(id_type(vocab))
            parts.append(part_ids)
        left_out = int((part_of == LEFT_OUT).sum())
        if left_out:
            notes = [*notes, f"{left_out:,} items of evaluated groups are in the training part, too, and were left out"]
        is_hashed = np.full(len(part_of), layout.novelty)
        train, held_out = (np.unique(split.hashes[is_hashed & part]) for part in (part_of == 0, part_of != 0))
        items = CorpusItems(
            ItemRecord(layout, counts[0], counts[1], counts[2], split.n_distinct, 0.0, train, held_out_hashes=held_out),
            n_patterns=len({item.translate(_DIGITS) for item in split.items}),
            longest=max(map(len, split.items)),
            mean_length=split.n_characters / len(split.items) - 1,
        )
        return cls(vocab, parts[0], parts[1], sha256, tuple(notes), parts[2], items)

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

    @property
    def layout(self) -> ItemLayout:
        """Whether it is a list, and how its items lay in the files."""
        return TEXT if self.items is None else self.items.record.layout

    @property
    def item_end(self) -> int | None:
        """The id before each item of a list; None for a text."""
        return None if self.items is None else self.vocab.start

    def streams(self, config: TrainConfig, device: str = "cpu") -> Streams | ItemStreams:
        """Return the batches that read the training part."""
        if self.items is None:
            return Streams(self.train, config.batch_size, config.seq_length, device)
        return ItemStreams(self.train, self.vocab.start, config.batch_size, config.seq_length, config.seed, device)


def id_type(vocab: Vocabulary) -> type[np.uint8] | type[np.uint16]:
    """Return the smallest integer type that holds every id."""
    return np.uint8 if len(vocab) <= 256 else np.uint16


@dataclass(frozen=True, slots=True)
class TextSizes:
    """The lengths of texts that are split each for itself, and what a split makes of them."""

    lengths: Sequence[int]

    @property
    def n_characters(self) -> int:
        """Characters of all texts."""
        return sum(self.lengths)

    def parts(self, config: TrainConfig) -> list[tuple[int, int, int]]:
        """Return the characters of the training, the validation and the test part of each text."""
        sizes = [(n, int(n * config.val_fraction), int(n * config.test_fraction)) for n in self.lengths]
        return [(n - n_val - n_test, n_val, n_test) for n, n_val, n_test in sizes]

    def evaluation_sizes(self, config: TrainConfig) -> tuple[int, int]:
        """Return the characters of the validation and the test part of all texts together."""
        parts = self.parts(config)
        return sum(n_val for _, n_val, _ in parts), sum(n_test for _, _, n_test in parts)

    def smallest_fraction(self) -> float:
        """Return the smallest fraction, in thousandths, that cuts enough characters for an evaluation from a text."""
        return float(math.ceil(1000 * MIN_EVALUATION_CHARS / max([1, *self.lengths])) / 1000)


CorpusSizes = TextSizes | SplittableItems
"""What is to be split: texts by their lengths, a list by its items."""


def check_lengths(sizes: CorpusSizes, config: TrainConfig) -> None:
    """Check that a list, or texts of these sizes, can be split and trained on.

    Raises:
        TextTooShort: They cannot; the error says how many characters would be enough.
    """
    n_val, n_test = sizes.evaluation_sizes(config)
    n = sizes.n_characters
    n_train = n - n_val - n_test
    needed_to_train = config.batch_size * (config.seq_length + 1)
    can_evaluate = n_val >= MIN_EVALUATION_CHARS and (n_test >= MIN_EVALUATION_CHARS or not config.test_fraction)
    if n_train >= needed_to_train and can_evaluate:
        return
    fractions = [fraction for fraction in (config.val_fraction, config.test_fraction) if fraction]
    needed_to_evaluate = max(int(MIN_EVALUATION_CHARS / fraction) + 1 for fraction in fractions)
    train_fraction = 1 - config.val_fraction - config.test_fraction
    needed = max(int(needed_to_train / train_fraction) + 1, needed_to_evaluate)
    subject = "the text has"
    if isinstance(sizes, SplittableItems):
        subject = "the list has"
    elif len(sizes.lengths) > 1:
        subject = f"the {len(sizes.lengths)} texts have"
    fits = f"; a batch_size of 1 and a seq_length of {n_train - 1} would fit" if n_train >= 2 and can_evaluate else ""
    raise TextTooShort(
        f"{subject} {n} characters, {n_train} of them in the training part",
        needed=needed,
        expected=f"at least {needed} (batch_size {config.batch_size} x seq_length {config.seq_length}, "
        f"val_fraction {config.val_fraction}): use more text, or a smaller batch_size or seq_length{fits}",
    )


class Streams:
    """Contiguous batching: B rows read the same ids in a circle, at equal distances; each window continues the last.

    A row's position is a function of the step, so that a resumed run needs no stored position. A row that reaches the
    end continues at the start of the ids: the only place in an epoch where the text is not contiguous.
    """

    item_end: int | None = None
    """A text has no items, see `ItemStreams`."""

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

    def prepare(self, step: int) -> None:
        """Do what the windows of a step share: nothing."""

    def window(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets (B, T) int64 of some rows at a step; targets are the inputs moved by one."""
        positions = (self._starts[rows] + step * self._seq_length + self._offsets) % len(self._ids)
        if self._device_ids is None:
            window = torch.from_numpy(self._ids[positions].astype(np.int64))
        else:
            on_device = torch.from_numpy(positions).to(self._device_ids.device, non_blocking=True)
            window = self._device_ids[on_device].long()
        return window[:, :-1], window[:, 1:]
