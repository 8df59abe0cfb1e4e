"""Items while they are generated: the lanes of model.stepper.items, each a row of sequences in the engine.

A lane is one text of item after item, so that no step of a slot is lost between two items. It comes in parts; one ends
early when another request waits for a slot, and the next part continues from its state. Which items are accepted, and
in which order, is decided by the code that `sample --items` runs, so the load changes nothing and both give the same
items.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from model.network.penalties import prompt_codes
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper.items import LANES, GeneratedItems, ItemCollector, ItemStart, Lane, take_candidates
from service.engine.sequence import SequenceRequest, StateArray
from service.engine.stream import Chunk, End, Failed, Item, Scored, Stream
from service.errors import PROMPT_NOT_READ, QueueFull, TimedOut
from service.generation.items.plan import ItemsPlan
from service.models.loaded_model import LoadedModel

_LEAST_CHARS, _MOST_CHARS = 16, 4096
"""That a part generates more than was read. It is given more as long as the client reads: between two parts of a lane
lies a block."""
_MAX_PART_CHARS = 1_000_000
"""In all."""
_BUFFERED = 64
"""Candidates of a lane that wait for those of other lanes; then it pauses."""
_PROMPT = -1
"""The index of the stream that reads the prefix."""
_RETRY_S = 0.05
_GREEDY = SamplingParams(temperature=0)


@dataclass(slots=True)
class _Part:
    """A part of a lane that runs or waits."""

    lane: int
    stream: Stream
    n_read: int = 0  # characters


class RunningItems:
    """Iterate over `items`; call `close` at any time, at the latest when the response ends."""

    def __init__(self, model: LoadedModel, plan: ItemsPlan) -> None:
        """Give the first sequence its place in the engine; only GenerationService creates these.

        Args:
            model: Generates the items.
            plan: Which items.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        self._model = model
        self._plan = plan
        self._engine = engine = model.engine
        self._collector = ItemCollector(plan.constraints, plan.record)
        self._is_late = self._is_counted = False
        self._has_failed = False
        self._n_chars = 0  # of the items
        self._lanes: list[Lane] = []  # none until the prefix is read
        self._start_state: StateArray | None = None  # where each item begins
        self._states: dict[int, StateArray] = {}  # lane -> where its next part begins, unless the lane starts over
        self._parts: dict[int, _Part] = {}  # by the index of its stream
        self._n_parts = 0
        self._prefix_logprobs = np.zeros(0, np.float32)
        self._max_parts = min(LANES, engine.n_slots + min(engine.n_slots, engine.max_waiting // 2))
        self._group = engine.open_group()
        with ExitStack() as on_error:
            self._lease = on_error.enter_context(model.acquire())
            on_error.callback(engine.close_group, self._group)
            if plan.constraints.prefix:
                engine.submit(self._prefix_request(), self._group.stream(_PROMPT))
            else:
                self._make_lanes(engine.vocab.start)
                self._go_on(least_parts=1)
            on_error.pop_all()

    def start_info(self) -> dict[str, Any]:
        """Return what is known before any item is generated: the data of a stream's first event."""
        return {"items": self._plan.constraints.n, "seed": self._plan.seed, "model": self._model.as_dict()}

    def items(self, poll_interval_s: float) -> Iterator[GeneratedItems]:
        """Yield the items that are there, and none before waiting for more: at least every `poll_interval_s`.

        Raises:
            TimedOut: The time was up before the prefix was read.
            ServiceError: The items cannot be generated.
        """
        while True:
            for _ in range(LANES):  # those of a block together: the order of the candidates goes from lane to lane
                if (event := self._group.get(0)) is None:
                    break
                self._take(*event)
            if items := self._accepted():
                yield items
            if self._collector.is_done or (self._lanes and time.monotonic() >= self._plan.deadline):
                self._is_late = not self._collector.is_done
                self._engine.close_group(self._group)
                return
            if self._lanes:
                with contextlib.suppress(QueueFull):  # other requests have every place
                    self._go_on()
            yield GeneratedItems()
            if self._lanes and not self._parts:
                time.sleep(min(poll_interval_s, _RETRY_S))  # others have every place; ours comes when they end
            elif (event := self._group.get(poll_interval_s)) is not None:
                self._take(*event)

    def summary(self) -> dict[str, Any]:
        """Return how it ended, after the last item."""
        outcome = self._collector.outcome()
        if self._is_late:
            outcome["finish_reason"] = "timeout"
        usage = {"prompt_chars": len(self._plan.constraints.prefix), "generated_chars": self._n_chars}
        return {**outcome, "seed": self._plan.seed, "model": self._model.as_dict(), "usage": usage}

    def close(self) -> None:
        """Stop generating, and release the model. Idempotent."""
        if not self._is_counted:
            self._is_counted = True
            self._engine.count_finished(self._finish_reason())
        self._engine.close_group(self._group)
        self._lease.release()

    def _finish_reason(self) -> Literal["stop", "timeout", "cancelled", "failed"]:
        """Return how the request ended, in the words of a text's end."""
        if self._has_failed:
            return "failed"
        return "timeout" if self._is_late else "stop" if self._collector.is_done else "cancelled"

    # ---- the order of the candidates

    def _accepted(self) -> GeneratedItems:
        """Offer the candidates that are there, in their order, and return those that are accepted."""
        candidates = take_candidates(self._lanes, self._collector.n_candidates)
        items = self._collector.offer(candidates)
        self._n_chars += sum(map(len, items.texts)) - len(items) * len(self._plan.constraints.prefix)
        return items

    def _needed(self) -> list[tuple[int, int]]:
        """Return each lane and the characters that it should still generate.

        The lane whose candidate is needed first is the first.
        """
        collector = self._collector
        first = collector.n_candidates
        end = first + collector.candidates_needed()
        needed = []
        for number, lane in enumerate(self._lanes):
            n_taken = (first - number + LANES - 1) // LANES
            next_number = (n_taken + len(lane.texts)) * LANES + number
            n_candidates = max(0, math.ceil((end - next_number) / LANES))
            n_chars = max(_LEAST_CHARS, min(_MOST_CHARS, collector.chars_for(n_candidates))) if n_candidates else 0
            needed.append((next_number, number, n_chars))
        return [(number, n_chars) for _, number, n_chars in sorted(needed)]

    # ---- the engine

    def _prefix_request(self) -> SequenceRequest:
        """Request the log-probabilities of the prefix, and the state at its end."""
        vocab = self._engine.vocab
        feed = np.array([vocab.start, *vocab.encode(self._plan.constraints.prefix)], np.int32)
        return SequenceRequest(feed, 0, 0, _GREEDY, 0, is_scored=True, is_part=True, deadline=self._plan.deadline)

    def _make_lanes(self, next_input: int) -> None:
        vocab, plan = self._engine.vocab, self._plan
        prefix = plan.constraints.prefix
        codes = prompt_codes(vocab.encode(prefix))
        start = ItemStart(prefix, self._prefix_logprobs, codes, next_input, self._start_state)
        self._lanes = [Lane(vocab, plan.constraints, plan.sampling, plan.seed, i, start) for i in range(LANES)]

    def _go_on(self, least_parts: int = 0) -> None:
        """Have each part generate what its lane needs, and start parts of lanes that have none.

        Args:
            least_parts: As many are started although other requests have every slot: they wait.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        running = {part.lane: part for part in self._parts.values()}
        room = min(self._max_parts - len(running), self._engine.room_for_group(len(running)))
        starting: list[tuple[int, int]] = []
        for number, n_chars in self._needed():
            if part := running.get(number):
                part.stream.needed_chars = part.n_read + n_chars
            elif n_chars and len(self._lanes[number].texts) < _BUFFERED and len(starting) < max(room, least_parts):
                starting.append((number, n_chars))
        if starting:
            self._start(starting)

    def _start(self, starting: list[tuple[int, int]]) -> None:
        """Start the next parts of lanes, as many as there are places for; each generates so many characters."""
        parts = [_Part(lane, self._group.stream(i)) for i, (lane, _) in enumerate(starting, self._n_parts)]
        for part, (_, n_chars) in zip(parts, starting, strict=True):
            part.stream.needed_chars = n_chars
        first, self._n_parts = self._n_parts, self._n_parts + len(parts)
        n_started = 0
        try:
            n_started = self._engine.submit_many((self._request(part.lane), part.stream) for part in parts)
        finally:
            for index, part in enumerate(parts, first):
                if index < first + n_started:
                    self._parts[index] = part
                else:
                    self._group.remove(index)

    def _request(self, number: int) -> SequenceRequest:
        """Request the next part of a lane."""
        plan, lane = self._plan, self._lanes[number]
        return SequenceRequest(
            feed=np.array([lane.next_input], np.int32),
            start_position=lane.position,
            max_chars=_MAX_PART_CHARS,
            sampling=plan.sampling,
            seed=lane.seed,
            state=self._start_state if lane.starts_over else self._states[number],
            logit_bias=plan.logit_bias,
            window=lane.window,
            deadline=plan.deadline,
            end_id=self._engine.vocab.start if lane.restarts else None,
            is_part=True,
        )

    def _take(self, index: int, item: Item) -> None:
        if isinstance(item, Failed):
            self._has_failed = True
            raise item.error
        if index == _PROMPT:
            self._take_prefix(item)
            return
        part = self._parts.get(index)
        if part is None:
            return  # of a part that has ended for its lane: what was generated past it, and its end
        match item:
            case Chunk():
                lane = self._lanes[part.lane]
                part.n_read += len(item.text)
                lane.advance(item.text, item.logprobs)
                if lane.starts_over:
                    self._end_part(index)
            case End(state=state):
                self._end_part(index)
                if state is not None:  # None: it was still waiting at the deadline
                    self._states[part.lane] = state.values

    def _end_part(self, index: int) -> None:
        self._group.remove(index)
        del self._parts[index]

    def _take_prefix(self, item: Item) -> None:
        match item:
            case Scored():
                self._prefix_logprobs = item.logprobs
            case End(state=None):
                self._is_late = True
                raise TimedOut(PROMPT_NOT_READ)
            case End(state=HiddenState() as state):
                self._start_state = state.values
                self._make_lanes(state.next_input)
