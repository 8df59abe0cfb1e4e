"""Texts that are only read: the log-probability of each character, and what an item's are summed up to.

All rely on the steppers' batch invariance: a text's log-probabilities are the same alone and beside any others. So
texts may be read in any order, and equal beginnings only once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.errors import UnknownCharacters
from model.network.sampling import SamplingParams, as_batch
from model.stepper import Block, ScoresTexts, Stepper, TextScoring
from model.text.items.record import Statistic
from model.text.vocab import Vocabulary

MOST_ROWS, FEWEST_ROWS = 512, 16
"""Texts that are read side by side."""
_LEVELS = 4  # a part should read so many characters of each text at least
_BLOCK_STEPS = 32
_PART_STEPS = 1 << 16
_GREEDY = SamplingParams(temperature=0)


@dataclass(frozen=True, slots=True, eq=False)
class PackedTexts:
    """Texts to be read, in one array.

    Attributes:
        ids: (N,) of each text: the id that is fed first, then its own ids.
        starts: (n + 1,) where each text begins, and N.
        order: (n,) the index that the i-th text has for the caller; texts that begin alike lie side by side.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        order: NDArray[np.int64],
        first: int,
        end: int | None = None,
    ) -> Self:
        """Pack texts.

        Args:
            ids: (M,) of all texts, one after the other.
            lengths: (n,) how many each has.
            order: (n,) the order to read them in, such as the one of their characters.
            first: The id that is fed before each.
            end: An id after each; None: there is none.
        """
        begins = np.cumsum(lengths) - lengths
        chosen = lengths[order]
        extra = 1 if end is None else 2
        starts = np.zeros(len(order) + 1, np.int64)
        np.cumsum(chosen + extra, out=starts[1:])
        packed = np.full(int(starts[-1]), first if end is None else end, np.int32)
        packed[starts[:-1]] = first
        place = np.arange(len(ids))
        to = np.repeat(starts[:-1] + 1 - (np.cumsum(chosen) - chosen), chosen)
        source = np.repeat(begins[order] - (np.cumsum(chosen) - chosen), chosen)
        packed[place + to] = ids[place + source]
        return cls(packed, starts, order)

    def __len__(self) -> int:
        """Return n."""
        return len(self.order)

    @property
    def n_scored(self) -> int:
        """The number of log-probabilities: all ids but the first of each text."""
        return len(self.ids) - len(self)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) the number of log-probabilities of each text, in the order of reading."""
        return np.diff(self.starts) - 1

    @property
    def scored_starts(self) -> NDArray[np.int64]:
        """(n + 1,) where the log-probabilities of each text begin, in the order of reading."""
        return self.starts - np.arange(len(self.starts))

    def in_order_of_caller(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values (n,), which are in the order of reading, by the caller's index."""
        result = np.empty_like(values)
        result[self.order] = values
        return result


class PackedScoring:
    """Reads packed texts in parts, some of them side by side."""

    def __init__(self, stepper: ScoresTexts, texts: PackedTexts) -> None:
        """Begin; nothing is read yet."""
        self.logprobs = np.empty(texts.n_scored, np.float32)
        self._stepper, self._texts = stepper, texts
        self._next = 0  # the first text that no scoring reads or has read
        self._scoring: TextScoring | None = None

    def run(self, steps: int, n_cores: int = 0) -> int:
        """Read on for about so many steps of one text each; returns how many it were, 0 at the end.

        Args:
            steps: About how many.
            n_cores: The most cores that are used; 0: any number.
        """
        made = 0
        while made < steps and (self._scoring is not None or self._next < len(self._texts)):
            if self._scoring is None:
                self._scoring = self._begin(max(FEWEST_ROWS, min(MOST_ROWS, steps // _LEVELS)))
            n = self._scoring.run(steps - made, n_cores)
            made += n
            if not n:
                self.close()
        return made

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        scoring, self._scoring = self._scoring, None
        if scoring is not None:
            scoring.close()

    def _begin(self, n_texts: int) -> TextScoring:
        first, last = self._next, min(self._next + n_texts, len(self._texts))
        self._next = last
        starts = self._texts.starts[first : last + 1]
        ids = self._texts.ids[starts[0] : starts[-1]]
        return self._stepper.begin_scoring(
            ids, starts - starts[0], self.logprobs[starts[0] - first : starts[-1] - last]
        )


def score_texts(stepper: Stepper, texts: PackedTexts) -> NDArray[np.float32]:
    """Return the natural log-probabilities of all texts, in the order of reading. Slots may be overwritten.

    Args:
        stepper: Reads each from the zero state.
        texts: What to read.
    """
    if isinstance(stepper, ScoresTexts):
        scoring = PackedScoring(stepper, texts)
        try:
            while scoring.run(_PART_STEPS):
                pass
        finally:
            scoring.close()
        return scoring.logprobs
    return _score_in_blocks(stepper, texts)


def _score_in_blocks(stepper: Stepper, texts: PackedTexts) -> NDArray[np.float32]:
    """The same by a stepper that has only blocks."""
    logprobs, begins = np.empty(texts.n_scored, np.float32), texts.scored_starts
    lengths = texts.lengths
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), stepper.n_slots):
        some = order[first : first + stepper.n_slots].tolist()
        for slot in range(len(some)):
            stepper.write(slot, None)
        for t in range(0, int(lengths[some[-1]]), _BLOCK_STEPS):
            rows = [row for row, i in enumerate(some) if lengths[i] > t]
            steps = np.array([min(_BLOCK_STEPS, lengths[some[row]] - t) for row in rows], np.int32)
            shape = int(steps.max()), len(rows)
            fed, scored = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            for column, (row, n) in enumerate(zip(rows, steps.tolist(), strict=True)):
                text = texts.ids[texts.starts[some[row]] + t :]
                fed[:n, column], scored[:n, column] = text[:n], text[1 : n + 1]
            block = Block(
                slots=np.array(rows, np.int32),
                steps=steps,
                forced_ids=fed,
                random_values=np.zeros(shape),
                sampling=as_batch([_GREEDY] * len(rows)),
                score_ids=scored,
            )
            result = stepper.run(block)
            for column, (row, n) in enumerate(zip(rows, steps.tolist(), strict=True)):
                start = int(begins[some[row]]) + t
                logprobs[start : start + n] = result.logprobs[:n, column]
    return logprobs


# ---- items


@dataclass(frozen=True, slots=True, eq=False)
class EncodedItems:
    """The ids of items up to the first character that no item of the model can have.

    Attributes:
        texts: The items.
        ids: (M,) of all items, one after the other.
        lengths: (n,) how many each has.
        unknown: By the index of an item: all characters that no item can have.
    """

    texts: Sequence[str]
    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    unknown: Mapping[int, str]

    @classmethod
    def of(cls, vocab: Vocabulary, items: Sequence[str]) -> Self:
        """Encode normalized items."""
        ids = vocab.lookup("".join(items))
        lengths = np.fromiter(map(len, items), np.int64, len(items))
        impossible = np.flatnonzero((ids < 0) | (ids == vocab.lookup(vocab.end)[0]))
        if not len(impossible):
            return cls(items, ids, lengths, {})
        ends = np.cumsum(lengths)
        damaged, first = np.unique(np.searchsorted(ends, impossible, side="right"), return_index=True)
        cut = ends.copy()
        cut[damaged] = impossible[first]
        kept = ids[np.arange(len(ids)) < np.repeat(cut, lengths)]
        unknown = {i: _unknown_characters(vocab, items[i]) for i in damaged.tolist()}
        return cls(items, kept, cut - (ends - lengths), unknown)

    def pack(self, vocab: Vocabulary) -> PackedTexts:
        """Return the items as texts whose ends count, in the order of their characters."""
        order = np.array(sorted(range(len(self.texts)), key=self.texts.__getitem__), np.int64)
        return PackedTexts.of(self.ids, self.lengths, order, vocab.start, vocab.start)


def _unknown_characters(vocab: Vocabulary, item: str) -> str:
    end = item.find(vocab.end)
    unknown = [(end, vocab.end)] if end >= 0 else []
    try:
        vocab.encode(item)
    except UnknownCharacters as error:
        unknown += error.unknown
    return "".join(character for _, character in sorted(unknown))


def item_logprobs(logprobs: NDArray[np.floating], begins: NDArray[np.integer]) -> NDArray[np.float64]:
    """Add up the log-probabilities of each item's characters; an item's sum depends on nothing but them.

    Args:
        logprobs: (n_chars,) of all items, one after the other.
        begins: (n_items,) where each one begins.
    """
    return np.add.reduceat(logprobs.astype(np.float64), begins)


@dataclass(frozen=True, slots=True)
class ItemScore:
    """How probable an item is.

    Attributes:
        text: The item.
        logprobs: (n + 1,) natural, of each character and of the end. The first one that no item of the model can
            have is the last, with -inf.
        unknown: The characters that no item can have: those that the vocabulary lacks, and the end of an item.
        logprob: The natural logarithm of the item's probability.
        bits: The item's surprisal.
        bits_per_character: The surprisal divided by the characters, the end counted.
        peak: The position of the most surprising character and its bits; the end is at the position len(text).
    """

    text: str
    logprobs: tuple[float, ...]
    unknown: str
    logprob: float
    bits: float
    bits_per_character: float
    peak: tuple[int, float]


@dataclass(frozen=True, slots=True, eq=False)
class ItemScores:
    """How probable many items are; the columns are those of `ItemScore`, (n,)."""

    texts: Sequence[str]
    unknown: Mapping[int, str]  # by index
    characters: NDArray[np.int64]  # of each item, its end counted
    logprob: NDArray[np.float64]
    peak_position: NDArray[np.int64]
    peak_bits: NDArray[np.float64]
    _logprobs: NDArray[np.float64]  # of all items, in the order of reading
    _places: NDArray[np.int64]  # (n, 2) where those of an item begin and end

    @classmethod
    def of(cls, items: EncodedItems, packed: PackedTexts, logprobs: NDArray[np.float32]) -> Self:
        """Sum up.

        Args:
            items: The items.
            packed: The same, packed.
            logprobs: (packed.n_scored,) as they were read.
        """
        values, begins = logprobs.astype(np.float64), packed.scored_starts
        if items.unknown:
            is_unknown = np.isin(packed.order, list(items.unknown))
            values[begins[1:][is_unknown] - 1] = -np.inf
        total = item_logprobs(values, begins[:-1])
        least = np.minimum.reduceat(values, begins[:-1])
        places = np.flatnonzero(values == np.repeat(least, packed.lengths))
        _, first = np.unique(np.searchsorted(begins, places, side="right"), return_index=True)
        spans = np.empty((len(packed), 2), np.int64)
        spans[packed.order] = np.stack([begins[:-1], begins[1:]], axis=1)
        return cls(
            items.texts,
            items.unknown,
            np.fromiter(map(len, items.texts), np.int64, len(items.texts)) + 1,
            packed.in_order_of_caller(total),
            packed.in_order_of_caller(places[first] - begins[:-1]),
            packed.in_order_of_caller(-least / math.log(2)),
            values,
            spans,
        )

    def __len__(self) -> int:
        """Return n."""
        return len(self.texts)

    def __getitem__(self, i: int) -> ItemScore:
        """Return the score of an item."""
        start, end = self._places[i].tolist()
        return ItemScore(
            self.texts[i],
            tuple(self._logprobs[start:end].tolist()),
            self.unknown.get(i, ""),
            float(self.logprob[i]),
            float(self.bits[i]),
            float(self.bits_per_character[i]),
            (int(self.peak_position[i]), float(self.peak_bits[i])),
        )

    def __iter__(self) -> Iterator[ItemScore]:
        """Yield the score of each item."""
        return (self[i] for i in range(len(self)))

    @property
    def bits(self) -> NDArray[np.float64]:
        """(n,) the surprisal of each item."""
        return -self.logprob / math.log(2)

    @property
    def bits_per_character(self) -> NDArray[np.float64]:
        """(n,) the surprisal of each item divided by its characters."""
        return self.bits / self.characters

    def statistic(self, name: Statistic) -> NDArray[np.float64]:
        """Return what items may be ranked by, (n,)."""
        values: NDArray[np.float64] = getattr(self, name)
        return values

    def as_dicts(self, ranks: NDArray[np.float64]) -> list[dict[str, Any]]:
        """Return the scores for JSON; what is infinite because of an unknown character is None.

        Args:
            ranks: (n,) the percentage of the validation items that are less surprising; NaN where there are none.
        """
        columns = (self.bits, self.bits_per_character, self.peak_position, self.peak_bits, ranks)
        dicts = [
            {
                "bits": bits,
                "bits_per_character": bits_per_character,
                "peak": {"position": position, "bits": peak},
                "rank": None if math.isnan(rank) else rank,
                "unknown": "",
            }
            for bits, bits_per_character, position, peak, rank in zip(*(c.tolist() for c in columns), strict=True)
        ]
        for i, characters in self.unknown.items():
            peak = {"position": int(self.peak_position[i]), "bits": None}
            dicts[i] |= {"bits": None, "bits_per_character": None, "peak": peak, "unknown": characters}
        return dicts


def score_items(stepper: Stepper, vocab: Vocabulary, items: Sequence[str]) -> ItemScores:
    """Score normalized items, each alone. The stepper's slots may be overwritten."""
    encoded = EncodedItems.of(vocab, items)
    packed = encoded.pack(vocab)
    return ItemScores.of(encoded, packed, score_texts(stepper, packed))
