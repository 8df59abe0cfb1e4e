"""Items of a list by a stepper: scored exactly, and generated in an order that only the seed decides.

Both rely on the steppers' batch invariance: an item's log-probabilities are the same alone and beside any others.

Generation runs LANES texts, each with a seed of its own and each a sequence of items. The j-th item of lane l is
candidate j * LANES + l, and candidates are accepted or rejected in this order. So neither the number of slots nor the
load changes which items come, and the first 20 of 100 items are the 20 items.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError, UnknownCharacters
from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, Stepper
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary

LANES = 64
PATIENCE = 1000
"""After so many candidates in a row of which none was accepted, generation ends with what there is."""
_BLOCK_STEPS = 32
_BUFFERED = 64  # candidates of a lane that wait for those of other lanes; then it pauses
_GREEDY = SamplingParams(temperature=0)


# ---- scoring


@dataclass(frozen=True, slots=True)
class ItemScore:
    """How probable an item is.

    Attributes:
        text: The item.
        logprobs: (n + 1,) natural, of each character and of the end. The first one that the vocabulary lacks is
            the last, with -inf.
        unknown: The characters that the vocabulary lacks.
    """

    text: str
    logprobs: tuple[float, ...]
    unknown: str = ""

    @property
    def logprob(self) -> float:
        """The natural logarithm of the item's probability."""
        return math.fsum(self.logprobs)

    @property
    def bits(self) -> float:
        """The item's surprisal."""
        return -self.logprob / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """The surprisal divided by the characters, the end counted."""
        return self.bits / (len(self.text) + 1)

    @property
    def peak(self) -> tuple[int, float]:
        """The position of the most surprising character and its bits; the end is at the position len(text)."""
        position = int(np.argmin(self.logprobs))
        return position, -self.logprobs[position] / math.log(2)

    def statistic(self, name: str) -> float:
        """Return one of model.text.items.record.STATISTICS."""
        return self.peak[1] if name == "peak_bits" else float(getattr(self, name))


def score_items(stepper: Stepper, vocab: Vocabulary, items: Sequence[str]) -> list[ItemScore]:
    """Score normalized items, each alone. The stepper's slots are overwritten."""
    encoded, unknown = [], []
    for item in items:
        try:
            encoded.append(vocab.encode(item))
            unknown.append("")
        except UnknownCharacters as error:
            first, _ = error.unknown[0]
            encoded.append(vocab.encode(item[:first]))
            unknown.append("".join(c for _, c in error.unknown))
    logprobs = score_ids(stepper, vocab.start, encoded)
    scores = []
    for item, ids, own, missing in zip(items, encoded, logprobs, unknown, strict=True):
        known = own.tolist() if not missing else [*own[: len(ids)].tolist(), -math.inf]
        scores.append(ItemScore(item, tuple(known), missing))
    return scores


def score_ids(stepper: Stepper, item_end: int, items: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of items, of each its ids and its end, (n + 1,).

    Args:
        stepper: Its slots are overwritten.
        item_end: The id that ends an item.
        items: The ids of each, (n,).
    """
    logprobs = [np.empty(len(item) + 1, np.float32) for item in items]
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    for first in range(0, len(order), stepper.n_slots):
        some = order[first : first + stepper.n_slots]
        for slot in range(len(some)):
            stepper.write(slot, None)
        for t in range(0, len(logprobs[some[-1]]), _BLOCK_STEPS):
            rows = [row for row, i in enumerate(some) if len(logprobs[i]) > t]
            steps = np.array([min(_BLOCK_STEPS, len(logprobs[some[row]]) - t) for row in rows], np.int32)
            shape = int(steps.max()), len(rows)
            fed, scored = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
            for column, (row, n) in enumerate(zip(rows, steps.tolist(), strict=True)):
                text = np.concatenate([[item_end], items[some[row]], [item_end]])
                fed[:n, column], scored[:n, column] = text[t : t + n], text[t + 1 : t + n + 1]
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
                logprobs[some[row]][t : t + n] = result.logprobs[:n, column]
    return logprobs


# ---- generation

Rejection = Literal["too_long", "too_short", "duplicate", "seen"]


@dataclass(frozen=True, slots=True)
class ItemWish:
    """What the generated items must be.

    Attributes:
        n: How many.
        unique: No two are equal.
        novel: None is one of the training items.
        prefix: They begin with this text.
        min_chars: The shortest.
        max_chars: The longest.
    """

    n: int
    unique: bool = True
    novel: bool = False
    prefix: str = ""
    min_chars: int = 1
    max_chars: int = 1000

    def check(self, record: ItemRecord | None) -> ItemRecord:
        """Return the record of a model that can fulfil the wish.

        Raises:
            ConfigError: The model is not of a list, does not know its training items, or the wish contradicts itself.
        """
        if record is None:
            problem = "the model was trained on a text, so it has no items"
            raise ConfigError(problem, field="items", value=self.n, expected="a model of a list (train --items lines)")
        if self.novel and not record.has_novelty:
            problem = "the checkpoint has no hashes of its training items (it was trained with --no-novelty)"
            raise ConfigError(problem, field="novel", value=True, expected="false")
        if self.min_chars > self.max_chars:
            expected = f"at most max_chars, {self.max_chars}"
            raise ConfigError(field="min_chars", value=self.min_chars, expected=expected)
        if len(self.prefix) > self.max_chars:
            expected = f"at most max_chars, {self.max_chars}, characters"
            raise ConfigError(field="prefix", value=self.prefix, expected=expected)
        return record


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item as it was generated; `is_whole` is False for one that was longer than allowed and not read to its end."""

    text: str
    logprobs: tuple[float, ...]
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class GeneratedItem:
    """An item that fulfils the wish."""

    text: str
    logprob: float  # natural, of the whole item, its prefix and its end included
    seen_in_training: bool | None  # None where the checkpoint does not know

    def as_dict(self) -> dict[str, Any]:
        """Return the item as the API and the command line show it."""
        return {"text": self.text, "logprob": self.logprob, "seen_in_training": self.seen_in_training}


@dataclass(slots=True)
class ItemCollector:
    """Accepts candidates in their order until the wish is fulfilled, or cannot be."""

    wish: ItemWish
    record: ItemRecord
    n_accepted: int = 0
    n_candidates: int = 0
    rejected: dict[Rejection, int] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _since_accepted: int = 0

    @property
    def is_done(self) -> bool:
        """Whether no more candidates are needed."""
        return self.n_accepted >= self.wish.n or self._since_accepted >= PATIENCE

    @property
    def n_missing(self) -> int:
        """How many items are still to come."""
        return self.wish.n - self.n_accepted

    def offer(self, candidate: Candidate) -> GeneratedItem | None:
        """Accept the next candidate, or reject it."""
        self.n_candidates += 1
        seen = self.record.is_training_item(candidate.text) if self.record.has_novelty else None
        reason = self._reason_against(candidate, bool(seen))
        if reason is not None:
            self.rejected[reason] = self.rejected.get(reason, 0) + 1
            self._since_accepted += 1
            return None
        self._since_accepted = 0
        self.n_accepted += 1
        if self.wish.unique:
            self._known.add(candidate.text)
        return GeneratedItem(candidate.text, math.fsum(candidate.logprobs), seen)

    def outcome(self) -> dict[str, Any]:
        """Return how it ended: `finish_reason` is "complete", or "exhausted" where the model has no more such items."""
        reason = "complete" if self.n_accepted >= self.wish.n else "exhausted" if self.is_done else "interrupted"
        return {
            "finish_reason": reason,
            "requested": self.wish.n,
            "generated": self.n_accepted,
            "candidates": self.n_candidates,
            "rejected": dict(self.rejected),
        }

    def _reason_against(self, candidate: Candidate, seen: bool) -> Rejection | None:
        if not candidate.is_whole or len(candidate.text) > self.wish.max_chars:
            return "too_long"
        if len(candidate.text) < self.wish.min_chars:
            return "too_short"
        if self.wish.unique and candidate.text in self._known:
            return "duplicate"
        return "seen" if self.wish.novel and seen else None


class Lane:
    """One text of items: what is fed to it next, and its candidates that nobody has taken yet.

    Attributes:
        seed: Of its random numbers.
        position: Characters of the lane up to and including to_feed[0]. The character that follows to_feed[k] has the
            random number of position + k.
        to_feed: What is fed before the lane samples.
        starts_over: Whether the lane's state is to be set to zero before that.
        candidates: Complete items, the first one first.
    """

    def __init__(self, vocab: Vocabulary, wish: ItemWish, seed: int, number: int, prefix: Sequence[float] = ()) -> None:
        """Begin a lane.

        Args:
            vocab: The vocabulary of the model.
            wish: What the items must be.
            seed: The seed of all lanes.
            number: Which lane this is.
            prefix: The log-probabilities of the prefix's characters.
        """
        self.seed = _lane_seed(seed, number)
        self.position = 0
        self.candidates: deque[Candidate] = deque()
        self._vocab, self._max_chars, self._prefix_logprobs = vocab, wish.max_chars, tuple(prefix)
        self._prefix = wish.prefix
        self._start = np.array([vocab.start, *vocab.encode(wish.prefix)], np.int32)
        self._text: list[str] = []  # of the item that is being generated
        self._logprobs: list[float] = []
        self.starts_over, self.to_feed = True, self._start
        self._begin()

    def advance(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Take what a block produced: the ids that were sampled, and their log-probabilities.

        What follows the end of an item whose lane starts over is not read; the caller sees `starts_over`.
        """
        self.starts_over = False
        self.position += len(self.to_feed) - 1
        self.to_feed = np.array(ids[-1:], np.int32)
        for n, (id, logprob) in enumerate(zip(ids, logprobs, strict=True), 1):
            self._logprobs.append(logprob)
            is_end = id == self._vocab.start
            if not is_end:
                self._text.append(self._vocab.characters[id])
                if len(self._text) <= self._max_chars:
                    continue
            self.candidates.append(Candidate("".join(self._text), tuple(self._logprobs), is_whole=is_end))
            if self._prefix or not is_end:
                self.position += n
                self._begin()
                return
            self._text, self._logprobs = [], []
        self.position += len(ids)

    def _begin(self) -> None:
        self.starts_over = True
        self.to_feed = self._start
        self._text = list(self._prefix)
        self._logprobs = list(self._prefix_logprobs)


def generate_items(
    stepper: Stepper, vocab: Vocabulary, collector: ItemCollector, params: SamplingParams, seed: int
) -> Iterator[GeneratedItem]:
    """Yield the items that the collector accepts, in their order.

    Args:
        stepper: Has LANES slots or more, which are overwritten.
        vocab: The vocabulary of its network.
        collector: What the items must be.
        params: The sampling parameters.
        seed: The same seed gives the same items.
    """
    wish = collector.wish
    prefix = score_ids(stepper, vocab.start, [vocab.encode(wish.prefix)])[0][:-1].tolist()
    lanes: list[Lane] = []
    while not collector.is_done:
        next_lane = collector.n_candidates % LANES
        if next_lane >= len(lanes):
            n = min(LANES, next_lane + max(1, collector.n_missing))
            lanes += [Lane(vocab, wish, seed, number, prefix) for number in range(len(lanes), n)]
        while lanes[next_lane].candidates and not collector.is_done:
            item = collector.offer(lanes[next_lane].candidates.popleft())
            if item is not None:
                yield item
            next_lane = collector.n_candidates % LANES
            if next_lane >= len(lanes):
                break
        else:
            if not collector.is_done:
                _run_lanes(stepper, lanes, params)


def _run_lanes(stepper: Stepper, lanes: Sequence[Lane], params: SamplingParams) -> None:
    rows = [slot for slot, lane in enumerate(lanes) if len(lane.candidates) < _BUFFERED]
    fed = max(len(lanes[slot].to_feed) for slot in rows)
    steps = fed - 1 + _BLOCK_STEPS
    forced = np.full((steps, len(rows)), SAMPLE, np.int32)
    for column, slot in enumerate(rows):
        lane = lanes[slot]
        forced[: len(lane.to_feed), column] = lane.to_feed
        if lane.starts_over:
            stepper.write(slot, None)
    block = Block(
        slots=np.array(rows, np.int32),
        steps=np.full(len(rows), steps, np.int32),
        forced_ids=forced,
        random_values=random_values([lanes[s].seed for s in rows], [lanes[s].position for s in rows], steps),
        sampling=as_batch([params] * len(rows)),
    )
    result = stepper.run(block)
    for column, slot in enumerate(rows):
        lane = lanes[slot]
        first = len(lane.to_feed) - 1
        lane.advance(result.ids[first:, column].tolist(), result.logprobs[first:, column].tolist())


def _lane_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little") >> 1
