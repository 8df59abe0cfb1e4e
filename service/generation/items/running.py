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
from typing import Any, Literal

import numpy as np

from model.network.penalties import prompt_codes
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper.items import LANES, GeneratedItem, ItemCollector, ItemStart, Lane, take_candidates
from service.engine.sequence import SequenceRequest, StateArray
from service.engine.stream import Chunk, End, Failed, Item, Scored
from service.errors import PROMPT_NOT_READ, QueueFull, TimedOut
from service.generation.items.plan import ItemsPlan
from service.models.loaded_model import LoadedModel

_MIN_PART_CHARS, _MAX_PART_CHARS = 16, 4096
"""Of a lane. As many are generated ahead of a client that does not read; between two parts a block is lost."""
_GUESSED_CHARS = 16
"""Of an item, before the first one."""
_BUFFERED = 64
"""Candidates of a lane that wait for those of other lanes; then it pauses."""
_PROMPT = -1
"""The index of the stream that reads the prefix."""
_RETRY_S = 0.05
_GREEDY = SamplingParams(temperature=0)


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
        self._parts: dict[int, int] = {}  # index of the stream -> the lane of which it brings a part
        self._n_parts = 0
        self._prefix_logprobs: tuple[float, ...] = ()
        self._max_parts = min(LANES, engine.n_slots + min(engine.n_slots, engine.max_waiting // 2))
        self._group = engine.open_group()
        with ExitStack() as on_error:
            self._lease = on_error.enter_context(model.acquire())
            on_error.callback(engine.close_group, self._group)
            if plan.constraints.prefix:
                engine.submit(self._prefix_request(), self._group.stream(_PROMPT))
            else:
                self._make_lanes(engine.vocab.start)
                self._start_next(*self._needed()[0])
            on_error.pop_all()

    def start_info(self) -> dict[str, Any]:
        """Return what is known before any item is generated: the data of a stream's first event."""
        return {"items": self._plan.constraints.n, "seed": self._plan.seed, "model": self._model.as_dict()}

    def items(self, poll_interval_s: float) -> Iterator[list[GeneratedItem]]:
        """Yield the items that are there, and an empty list before waiting for more: at least every `poll_interval_s`.

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
                self._start_more()
            yield []
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

    def _accepted(self) -> list[GeneratedItem]:
        """Offer the candidates that are there, in their order, and return those that are accepted."""
        candidates = take_candidates(self._lanes, self._collector.n_candidates)
        items = self._collector.offer(candidates) if candidates else []
        self._n_chars += sum(len(item.text) for item in items) - len(items) * len(self._plan.constraints.prefix)
        return items

    def _needed(self) -> list[tuple[int, int]]:
        """Return the lanes that should run and do not, and the characters that they should generate.

        The lane whose candidate is needed first is the first. Lengths differ: with two deviations more than the mean,
        taken to be as large as it, hardly a lane needs another part for its last candidates.
        """
        collector = self._collector
        first = collector.n_candidates
        per_item = (first + 1) / (collector.n_accepted + 1)
        end = first + math.ceil(collector.n_missing * min(per_item, _BUFFERED))
        mean_chars = (collector.n_chars + _GUESSED_CHARS) / (first + 1)
        running = set(self._parts.values())
        needed = []
        for number, lane in enumerate(self._lanes):
            n_taken = (first - number + LANES - 1) // LANES
            next_number = (n_taken + len(lane.candidates)) * LANES + number
            if number not in running and next_number < end and len(lane.candidates) < _BUFFERED:
                n_candidates = math.ceil((end - next_number) / LANES)
                n_chars = math.ceil((n_candidates + 2 * math.sqrt(n_candidates)) * mean_chars)
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

    def _start_more(self) -> None:
        if not self._has_room():
            return
        with contextlib.suppress(QueueFull):  # other requests have every place
            for number, n_chars in self._needed():
                if not self._has_room():
                    return
                self._start_next(number, n_chars)

    def _has_room(self) -> bool:
        n_parts = len(self._parts)
        return n_parts < self._max_parts and self._engine.has_room_for_group(n_parts)

    def _start_next(self, number: int, n_chars: int) -> None:
        """Start the next part of a lane, of so many characters at most."""
        plan, lane = self._plan, self._lanes[number]
        n_chars = max(_MIN_PART_CHARS, min(_MAX_PART_CHARS, n_chars))
        request = SequenceRequest(
            feed=np.array([lane.next_input], np.int32),
            start_position=lane.position,
            max_chars=n_chars,
            sampling=plan.sampling,
            seed=lane.seed,
            state=self._start_state if lane.starts_over else self._states[number],
            logit_bias=plan.logit_bias,
            window=lane.window,
            deadline=plan.deadline,
            end_id=self._engine.vocab.start if lane.restarts else None,
            is_part=True,
        )
        index = self._n_parts
        self._engine.submit(request, self._group.stream(index))
        self._n_parts += 1
        self._parts[index] = number

    def _take(self, index: int, item: Item) -> None:
        if isinstance(item, Failed):
            self._has_failed = True
            raise item.error
        if index == _PROMPT:
            self._take_prefix(item)
            return
        number = self._parts.get(index)
        if number is None:
            return  # of a part that has ended for its lane: what was generated past it, and its end
        match item:
            case Chunk():
                lane = self._lanes[number]
                lane.advance(item.text, item.logprobs.tolist())
                if lane.starts_over:
                    self._end_part(index)
            case End(state=state):
                self._end_part(index)
                if state is not None:  # None: it was still waiting at the deadline
                    self._states[number] = state.values

    def _end_part(self, index: int) -> None:
        self._group.remove(index)
        del self._parts[index]

    def _take_prefix(self, item: Item) -> None:
        match item:
            case Scored():
                self._prefix_logprobs = tuple(item.logprobs.tolist())
            case End(state=None):
                self._is_late = True
                raise TimedOut(PROMPT_NOT_READ)
            case End(state=HiddenState() as state):
                self._start_state = state.values
                self._make_lanes(state.next_input)
