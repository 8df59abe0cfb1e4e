"""Many texts of one prompt, read together: the prompt is read once, then each text takes a slot of its own.

No more of them are in the engine at a time than keep its slots busy; the others follow as texts end. So a request for
many texts is not refused because there are many, and leaves places to others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.engine.stream import Chunk, End, Failed, FinishReason, Item, StateCapture, Stream, StreamGroup
from service.errors import QueueFull, ServiceError, TimedOut
from service.generation.plan import GenerationPlan
from service.generation.stream import RunningGeneration
from service.models.loaded_model import LoadedModel
from service.store.prefixes import PrefixStore

_PROMPT = -1
"""The index of the stream that reads the prompt."""
_RETRY_S = 0.05
StartMember = Callable[[LoadedModel, GenerationPlan, Stream], RunningGeneration]


@dataclass(frozen=True, slots=True)
class BatchChunk:
    """New text of one of the texts."""

    index: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class BatchResult:
    """How one of the texts ended."""

    index: int
    finish_reason: FinishReason
    seed: int
    generated_chars: int

    def as_dict(self) -> dict[str, Any]:
        """Return the result as the API shows it."""
        return {
            "index": self.index,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "generated_chars": self.generated_chars,
        }


class RunningBatch:
    """Iterate over `parts`; call `close` at any time, at the latest when the response ends."""

    def __init__(
        self, model: LoadedModel, plans: list[GenerationPlan], start: StartMember, prefixes: PrefixStore
    ) -> None:
        """Give the first sequence its place in the engine; only GenerationService creates batches.

        Args:
            model: Generates the texts.
            plans: One for each text; they differ in the seed only.
            start: Starts a text on a stream of a group.
            prefixes: Where captured states of the prompt are cached.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        self._model = model
        self._plans = plans
        self._start = start
        self._prefixes = prefixes
        self._group = StreamGroup()
        self._waiting = deque(range(len(plans)))
        self._running: dict[int, RunningGeneration] = {}
        self._generated_chars = [0] * len(plans)
        self._is_reading = False
        self.first = plans[0]
        with ExitStack() as on_error:
            self._lease = on_error.enter_context(model.acquire())
            on_error.callback(self._group.close)
            if len(plans) > 1 and len(self.first.sequence.feed) > 1:
                prompt = replace(self.first.sequence, max_chars=0, stop=())
                model.engine.submit(prompt, self._group.stream(_PROMPT))
                self._is_reading = True
            else:
                self._start_next()
            on_error.pop_all()

    @property
    def has_logprobs(self) -> bool:
        """Whether chunks have log-probabilities."""
        return self.first.top_logprobs is not None

    def start_info(self) -> dict[str, Any]:
        """Return what is known before any text is generated: the data of a stream's first event."""
        return {"n": len(self._plans), "seed": self.first.record.seed, "model": self._model.as_dict()}

    def summary(self) -> dict[str, Any]:
        """Return what is known of all texts together at the end."""
        usage = {
            "prompt_chars": len(self.first.record.prompt),
            "generated_chars": sum(self._generated_chars),
            "reused_chars": self.first.sequence.reused_chars,
        }
        return {"seed": self.first.record.seed, "model": self._model.as_dict(), "usage": usage}

    def parts(self, poll_interval_s: float) -> Iterator[BatchChunk | BatchResult | None]:
        """Yield parts of the texts as they are generated, and None each time there was none for `poll_interval_s`.

        Raises:
            TimedOut: The time was up before the prompt was read.
            ServiceError: A text cannot continue.
        """
        while self._is_reading or self._waiting or self._running:
            if not self._is_reading:
                self._start_more()
            if not self._is_reading and not self._running:
                time.sleep(min(poll_interval_s, _RETRY_S))  # others have every place; ours comes when they end
                yield None
                continue
            got = self._group.get(poll_interval_s)
            if got is None:
                yield None
                continue
            index, item = got
            if index == _PROMPT:
                self._take_prompt(item)
                continue
            part = self._take(index, item)
            if part is not None:
                yield part

    def close(self) -> None:
        """Stop generating, and release the model. Idempotent."""
        self._waiting.clear()
        self._group.close()
        try:
            while self._running:
                _, generation = self._running.popitem()
                generation.release()
        finally:
            self._lease.release()

    def _start_more(self) -> None:
        try:
            while self._waiting and len(self._running) < self._model.engine.max_group:
                self._start_next()
        except QueueFull:
            pass

    def _start_next(self) -> None:
        index = self._waiting[0]
        self._running[index] = self._start(self._model, self._plans[index], self._group.stream(index))
        self._waiting.popleft()

    def _take(self, index: int, item: Item) -> BatchChunk | BatchResult | None:
        generation = self._running[index]
        chunk = generation.handle(item)
        if chunk is not None:
            self._generated_chars[index] += len(chunk.text)
            return BatchChunk(index, chunk)
        if generation.end is None:
            return None
        del self._running[index]
        generation.release()
        seed = self._plans[index].record.seed
        return BatchResult(index, generation.end.finish_reason, seed, self._generated_chars[index])

    def _take_prompt(self, item: Item) -> None:
        """Continue every text from the state at the prompt's end, when it is there."""
        match item:
            case StateCapture() if item.key:
                self._prefixes.put(item.key, item.state.to_bytes())
            case Failed():
                raise item.error if isinstance(item.error, ServiceError) else ServiceError("internal error")
            case End(state=None):
                raise TimedOut("timeout_s passed before the prompt was read")
            case End(state=state) if state is not None:
                feed = np.array([state.next_input], dtype=np.int32)
                changes: dict[str, Any] = {
                    "feed": feed,
                    "start_position": state.position,
                    "state": state.values,
                    "captures": {},
                }
                changes["reused_chars"] = 0  # the prompt was counted when it was read
                self._plans = [replace(p, sequence=replace(p.sequence, **changes)) for p in self._plans]
                self._is_reading = False
