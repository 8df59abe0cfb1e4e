"""Items of a list by a stepper, generated in an order that only the seed decides.

An item's log-probabilities are those that scoring.py gives it: steppers are batch-invariant.

Generation runs LANES texts, each with a seed of its own and each a sequence of items. The j-th item of lane l is
candidate j * LANES + l, and candidates are accepted or rejected in this order. So neither the number of slots nor the
load changes which items come, and the first 20 of 100 items are the 20 items.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile, zip_longest
from operator import mul
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.network.penalties import LogitBias, Window, advance_window, new_window, prompt_codes, stack_windows
from model.network.sampling import SamplingParams, as_batch, random_values
from model.stepper import SAMPLE, Block, Stepper
from model.stepper.generate import bias_by_id, one_row_block
from model.stepper.scoring import item_logprobs
from model.text.items.record import ItemRecord
from model.text.vocab import Vocabulary

LANES = 64
PATIENCE = 1000
"""After so many candidates in a row of which none was accepted, generation ends with what there is."""
_BLOCK_STEPS, _MAX_BLOCK_STEPS = 32, 256
_BUFFERED = 64  # candidates of a lane that wait for those of other lanes; then it pauses
_GUESSED_CHARS = 16  # of an item, before the first one
T = TypeVar("T")


Rejection = Literal["too_long", "too_short", "duplicate", "seen"]


@dataclass(frozen=True, slots=True)
class ItemConstraints:
    """How many items to generate, and the conditions that each has to meet.

    Attributes:
        n: How many.
        unique: No two are equal.
        novel: None is an item of the list, also none that was held out for validation or the test.
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

    def check(self, record: ItemRecord | None, vocab: Vocabulary) -> ItemRecord:
        """Return the record of a model that can generate such items.

        Args:
            record: What its checkpoint records of its list; None for a model of a text.
            vocab: Its vocabulary.

        Raises:
            ConfigError: The model is not of a list, does not know its training items, or the conditions contradict each
                other.
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
        if vocab.end in self.prefix:
            expected = f"a text without {vocab.end!r}, which ends an item of this model"
            raise ConfigError(field="prefix", value=self.prefix, expected=expected)
        return record


@dataclass(slots=True)
class Candidates:
    """Items as they were generated, the first one first.

    One that is longer than allowed was not read to its end: it has one character more than the longest item.

    Attributes:
        texts: Of the items.
        logprobs: Natural, of each whole item, its prefix and its end included.
    """

    texts: list[str]
    logprobs: list[float]


class GeneratedItem(NamedTuple):
    """An item that meets the constraints."""

    text: str
    logprob: float  # natural, of the whole item, its prefix and its end included
    seen_in_training: bool | None  # None where the checkpoint does not know

    def as_dict(self) -> dict[str, Any]:
        """Return the item as the API and the command line show it."""
        return {"text": self.text, "logprob": self.logprob, "seen_in_training": self.seen_in_training}


@dataclass(frozen=True, slots=True)
class GeneratedItems:
    """Items that meet the constraints, many at a time; the columns are those of `GeneratedItem`, (n,)."""

    texts: Sequence[str] = ()
    logprobs: Sequence[float] = ()
    seen_in_training: Sequence[bool | None] = ()

    def __len__(self) -> int:
        """Return n."""
        return len(self.texts)

    def __iter__(self) -> Iterator[GeneratedItem]:
        """Yield the items one by one."""
        return map(GeneratedItem, self.texts, self.logprobs, self.seen_in_training)


@dataclass(slots=True)
class ItemCollector:
    """Accepts candidates in their order until there are enough, or the model has no more of them.

    Attributes:
        constraints: Of the items.
        record: What is known of the model's list.
        n_accepted: Items so far.
        n_candidates: Candidates so far.
        n_chars: Characters of these, their ends counted.
        rejected: How many candidates, by reason.
    """

    constraints: ItemConstraints
    record: ItemRecord
    n_accepted: int = 0
    n_candidates: int = 0
    n_chars: int = 0
    rejected: dict[Rejection, int] = field(default_factory=dict)
    _n_squared_chars: int = 0  # the squares of the candidates' lengths, added up
    _texts: set[str] = field(default_factory=set)  # that were accepted
    _since_accepted: int = 0

    @property
    def is_done(self) -> bool:
        """Whether no more candidates are needed."""
        return self.n_accepted >= self.constraints.n or self._since_accepted >= PATIENCE

    @property
    def n_missing(self) -> int:
        """How many items are still to come."""
        return self.constraints.n - self.n_accepted

    def chars_for(self, n_candidates: int) -> int:
        """Return the characters in which a lane completes so many candidates, nearly always.

        Their lengths have been like those of the candidates so far, and 2.5 deviations more are nearly always enough.
        """
        n = self.n_candidates
        mean = (self.n_chars + _GUESSED_CHARS) / (n + 1)
        squares = (self._n_squared_chars + 2 * _GUESSED_CHARS**2) / (n + 1)
        return math.ceil(n_candidates * mean + 2.5 * math.sqrt(n_candidates * (squares - mean**2)))

    def candidates_needed(self) -> int:
        """Return how many candidates bring the items that are missing, nearly always."""
        share = (self.n_accepted + 1) / (self.n_candidates + 1)  # that is accepted
        return math.ceil((self.n_missing + 2 * math.sqrt(self.n_missing * (1 - share))) / share)

    def offer(self, candidates: Candidates) -> GeneratedItems:
        """Accept or reject the next candidates, many at a time, and return the items; those after the last are dropped.

        Hashes are made and looked up for all of them at once, and nothing is done by item that can be done for all: on
        a CPU with tiles, Python took longer for an item than the network.
        """
        if self.is_done:
            return GeneratedItems()
        constraints, texts = self.constraints, candidates.texts
        is_trained: Sequence[bool | None] = [None] * len(texts)
        is_refused = [False] * len(texts)
        if self.record.has_novelty:
            is_trained, is_listed = (values.tolist() for values in self.record.known(texts))
            is_refused = is_listed if constraints.novel else is_refused
        accepted, n_read = self._choose(texts, is_refused)
        self._count(texts[:n_read], len(accepted))
        return GeneratedItems(
            [texts[i] for i in accepted],
            [candidates.logprobs[i] for i in accepted],
            [is_trained[i] for i in accepted],
        )

    def outcome(self) -> dict[str, Any]:
        """Return how it ended: `finish_reason` is "complete", or "exhausted" where the model has no more such items."""
        reason = "complete" if self.n_accepted >= self.constraints.n else "exhausted" if self.is_done else "interrupted"
        return {
            "finish_reason": reason,
            "requested": self.constraints.n,
            "generated": self.n_accepted,
            "candidates": self.n_candidates,
            "rejected": dict(self.rejected),
        }

    def _choose(self, texts: Sequence[str], is_refused: Sequence[bool]) -> tuple[list[int], int]:
        """Return the indices of the texts that are accepted, and how many texts were read until there are enough.

        Args:
            texts: The next candidates.
            is_refused: Which of them are items of the list, if these are to be rejected.
        """
        constraints, known, n_missing = self.constraints, self._texts, self.n_missing
        shortest, longest, is_unique = constraints.min_chars, constraints.max_chars, constraints.unique
        accepted: list[int] = []
        reasons: list[Rejection] = []
        since_accepted, n_read = self._since_accepted, 0
        for text, refused in zip(texts, is_refused, strict=True):
            n_read += 1
            if not shortest <= len(text) <= longest:
                reasons.append("too_short" if len(text) < shortest else "too_long")
            elif text in known:
                reasons.append("duplicate")
            elif refused:
                reasons.append("seen")
            else:
                accepted.append(n_read - 1)
                if is_unique:
                    known.add(text)
                since_accepted = 0
                if len(accepted) == n_missing:
                    break
                continue
            since_accepted += 1
            if since_accepted == PATIENCE:
                break
        self._since_accepted = since_accepted
        for reason, n in Counter(reasons).items():
            self.rejected[reason] = self.rejected.get(reason, 0) + n
        return accepted, n_read

    def _count(self, texts: Sequence[str], n_accepted: int) -> None:
        longest = self.constraints.max_chars
        lengths = [n + 1 if n <= longest else n for n in map(len, texts)]
        self.n_accepted += n_accepted
        self.n_candidates += len(texts)
        self.n_chars += sum(lengths)
        self._n_squared_chars += sum(map(mul, lengths, lengths))


@dataclass(frozen=True, slots=True, eq=False)
class ItemStart:
    """Where every item of a generation begins: at the zero state, or after a prefix, which is read once.

    Attributes:
        prefix: The text that items begin with.
        logprobs: (n,) natural, of the prefix's characters.
        codes: (n,) of the prefix, for penalties.
        next_input: What is fed first: the last character of the prefix, or the end of an item.
        state: The slot's state before that; None where it does not matter, because the end of an item resets it.
    """

    prefix: str
    logprobs: NDArray[np.float32]
    codes: Window
    next_input: int
    state: NDArray[np.floating] | None

    @classmethod
    def read(cls, stepper: Stepper, vocab: Vocabulary, prefix: str = "") -> Self:
        """Read a prefix on slot 0 of a stepper.

        Raises:
            UnknownCharacters: The prefix has characters that the vocabulary lacks.
        """
        ids = vocab.encode(prefix)
        if not len(ids):
            return cls(prefix, np.zeros(0, np.float32), prompt_codes(ids), vocab.start, None)
        result = stepper.run(one_row_block(0, [vocab.start, *ids[:-1].tolist()], len(ids), score_ids=ids))
        return cls(prefix, result.logprobs[:, 0].copy(), prompt_codes(ids), int(ids[-1]), stepper.read(0))


class Lane:
    """One text of items: what is fed to it next, and its candidates that nobody has taken yet.

    Attributes:
        seed: Of its random numbers.
        position: Characters of the lane up to and including next_input: the random number of the character after it.
        next_input: What is fed first.
        window: Of the penalties, before the next character: of the item that is being generated alone, so that an item
            does not depend on those before it.
        max_chars: Of an item.
        restarts: Whether each item begins with a new sequence of blocks; else the next one begins within a block.
        starts_over: Whether the lane's slot is to be set to the state of the start before that.
        texts: Complete items that nobody has taken, the first one first; see Candidates.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        constraints: ItemConstraints,
        params: SamplingParams,
        seed: int,
        number: int,
        start: ItemStart,
    ) -> None:
        """Begin a lane.

        Args:
            vocab: The vocabulary of the model.
            constraints: Of the items.
            params: The sampling parameters.
            seed: The seed of all lanes.
            number: Which lane this is.
            start: Where each item begins.
        """
        self.seed = _lane_seed(seed, number)
        self.position = 0
        self.texts: list[str] = []
        self._vocab, self.max_chars, self._params, self._start = vocab, constraints.max_chars, params, start
        self._has_penalties = params.has_penalties
        self.restarts = bool(start.prefix) or self._has_penalties
        self._text = ""  # of the item that is being generated
        self._logprobs = np.zeros(0, np.float32)  # of the complete items, then of this one
        self.window: Window = start.codes
        self._begin()

    def advance(self, text: str, logprobs: NDArray[np.float32]) -> None:
        """Take what was sampled: one character or more, with their log-probabilities, (n,).

        What follows the end of an item whose lane starts over is not read; the caller sees `starts_over`.
        """
        max_chars, n_before = self.max_chars, len(self._text)
        text = self._text + text
        *whole, rest = text.split(self._vocab.end)
        complete = whole[:1] if self.restarts else whole
        if max(map(len, complete), default=0) > max_chars:
            complete = list(takewhile(lambda item: len(item) <= max_chars, complete))
        n_read = sum(map(len, complete)) + len(complete)
        item = rest if len(complete) == len(whole) else whole[len(complete)]
        self.starts_over = self.restarts and bool(complete)
        if not self.starts_over and len(item) > max_chars:
            complete.append(item[: max_chars + 1])
            n_read += max_chars + 1
            self.starts_over = True
        self.texts += complete
        self._logprobs = np.concatenate([self._logprobs, logprobs])
        if self.starts_over:
            self._logprobs = self._logprobs[: len(self._logprobs) - len(text) + n_read]
            self.position += n_read - n_before
            self._begin()
            return
        self._text = rest
        self.position += len(text) - n_before
        self.next_input = self._vocab.characters.index(text[-1])
        if self._has_penalties:
            self.window = advance_window(self._params, self.window, self._vocab.encode(text[n_before:]))

    def take(self, n: int) -> tuple[list[str], NDArray[np.float32]]:
        """Take so many of the complete items, and their log-probabilities, one item's after the other's."""
        texts, self.texts = self.texts[:n], self.texts[n:]
        n_logprobs = sum(map(len, texts)) + len(texts)
        if max(map(len, texts), default=0) > self.max_chars:  # that were not read to their end
            n_logprobs -= sum(len(text) > self.max_chars for text in texts)
        logprobs, self._logprobs = self._logprobs[:n_logprobs], self._logprobs[n_logprobs:]
        return texts, logprobs

    def _begin(self) -> None:
        self.starts_over = True
        self.position += len(self._start.prefix)
        self.next_input = self._start.next_input
        self.window = new_window(self._params, self._start.codes)
        self._text = self._start.prefix
        self._logprobs = np.concatenate([self._logprobs, self._start.logprobs])


def generate_items(
    stepper: Stepper,
    vocab: Vocabulary,
    collector: ItemCollector,
    params: SamplingParams,
    seed: int,
    logit_bias: Mapping[str, float] | None = None,
) -> Iterator[GeneratedItem]:
    """Yield the items that the collector accepts, in their order.

    Args:
        stepper: Of a network of a list. It has LANES slots or more, which are overwritten.
        vocab: The vocabulary of its network.
        collector: Of the items.
        params: The sampling parameters. The window of the penalties begins anew with each item.
        seed: The same seed gives the same items.
        logit_bias: Is added to the logits of characters; the end of an item is one of them.

    Raises:
        UnknownCharacters: The prefix or the bias has characters that the vocabulary lacks.
    """
    constraints, bias = collector.constraints, bias_by_id(vocab, logit_bias or {})
    start = ItemStart.read(stepper, vocab, constraints.prefix)
    lanes: list[Lane] = []
    while not collector.is_done:
        next_lane = collector.n_candidates % LANES
        if next_lane >= len(lanes):
            n = min(LANES, next_lane + max(1, collector.n_missing))
            lanes += [Lane(vocab, constraints, params, seed, number, start) for number in range(len(lanes), n)]
        candidates = take_candidates(lanes, collector.n_candidates)
        yield from collector.offer(candidates)
        if not candidates.texts:
            _run_lanes(stepper, vocab, lanes, start, params, bias, _steps_for(collector, lanes))


def take_candidates(lanes: Sequence[Lane], n_taken: int) -> Candidates:
    """Take the candidates that are there from their lanes, in their order, after the first `n_taken`."""
    first = n_taken % LANES
    order = [*lanes[first:], *lanes[:first]]
    n = min((len(lane.texts) * LANES + i for i, lane in enumerate(order)), default=0)
    if len(lanes) < LANES:  # the candidate after the last lane's is that of a lane that has not begun
        n = min(n, len(lanes) - first)
    if not n:
        return Candidates([], [])
    rounds, n_last = divmod(n, LANES)
    taken = [lane.take(rounds + (i < n_last)) for i, lane in enumerate(order)]
    texts, logprobs = [element for element, _ in taken], np.concatenate([element for _, element in taken])
    chars = np.minimum(np.fromiter(map(len, chain.from_iterable(texts)), np.int64, n), lanes[0].max_chars) + 1
    sums = iter(item_logprobs(logprobs, np.cumsum(chars) - chars).tolist())
    return Candidates(_in_turn(texts)[:n], _in_turn([list(islice(sums, len(element))) for element in texts])[:n])


def _in_turn(columns: Sequence[Sequence[T]]) -> list[T]:
    """Return the first of each, the second of each, and so on."""
    return list(chain.from_iterable(zip_longest(*columns)))


def _steps_for(collector: ItemCollector, lanes: Sequence[Lane]) -> int:
    """Return the steps of the next block: more where many characters are missing, since each block has its overhead."""
    if lanes[0].restarts:
        return _BLOCK_STEPS
    n_per_lane = math.ceil(collector.candidates_needed() / len(lanes))
    return max(_BLOCK_STEPS, min(_MAX_BLOCK_STEPS, collector.chars_for(n_per_lane)))


def _run_lanes(
    stepper: Stepper,
    vocab: Vocabulary,
    lanes: Sequence[Lane],
    start: ItemStart,
    params: SamplingParams,
    bias: Mapping[int, float],
    n_steps: int,
) -> None:
    rows = [slot for slot, lane in enumerate(lanes) if len(lane.texts) < _BUFFERED]
    forced_ids = np.full((n_steps, len(rows)), SAMPLE, np.int32)
    forced_ids[0] = [lanes[slot].next_input for slot in rows]
    for slot in rows:
        if lanes[slot].starts_over and start.state is not None:
            stepper.write(slot, start.state)
    block = Block(
        slots=np.array(rows, np.int32),
        steps=np.full(len(rows), n_steps, np.int32),
        forced_ids=forced_ids,
        random_values=random_values([lanes[s].seed for s in rows], [lanes[s].position for s in rows], n_steps),
        sampling=as_batch([params] * len(rows)),
        windows=stack_windows([lanes[slot].window for slot in rows]),
        logit_bias=LogitBias.of([bias] * len(rows)),
    )
    result = stepper.run(block)
    for column, slot in enumerate(rows):
        lanes[slot].advance(vocab.decode(result.ids[:, column]), result.logprobs[:, column])


def _lane_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest(), "little") >> 1
