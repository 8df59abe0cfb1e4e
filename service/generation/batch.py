"""Many texts of one request: each prompt is read once, then each of its texts takes a slot of its own.

All of them are generated side by side; `service.engine.group_queue` says how many are in the engine at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.engine.group_queue import GroupQueue
from service.engine.stream import Chunk, End, Failed, FinishReason, Item, StateCapture, Stream
from service.errors import PROMPT_NOT_READ, TimedOut
from service.generation.plan import GenerationPlan
from service.generation.running import BITS_DIGITS, RunningGeneration
from service.models.loaded_model import LoadedModel
from service.store.prefixes import PrefixStore

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
    mask_bits: float | None = None  # of a constrained text

    def as_dict(self) -> dict[str, Any]:
        """Return the result as the API shows it."""
        mask_bits = {} if self.mask_bits is None else {"mask_bits": round(self.mask_bits, BITS_DIGITS)}
        return {
            "index": self.index,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "generated_chars": self.generated_chars,
            **mask_bits,
        }


class RunningBatch:
    """Iterate over `parts`; call `close` at any time, at the latest when the response ends.

    Text k of prompt p has the index p * n + k; the sequence that only reads prompt p has the index -1 - p.
    """

    def __init__(
        self, model: LoadedModel, plans: list[list[GenerationPlan]], start: StartMember, prefixes: PrefixStore
    ) -> None:
        """Give the first sequence its place in the engine; only GenerationService creates batches.

        Args:
            model: Generates the texts.
            plans: For each prompt, those of its n texts; they differ in the seed only.
            start: Starts a text on a stream of a group.
            prefixes: Where captured states of the prompts are cached.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        self._model = model
        self._plans = plans
        self._n = len(plans[0])
        self._start = start
        self._prefixes = prefixes
        self._running: dict[int, RunningGeneration] = {}
        self._generated_chars = [0] * (len(plans) * self._n)
        self._prompt_chars = sum(len(texts[0].record.prompt) for texts in plans)
        self._reused_chars = sum(texts[0].sequence.reused_chars for texts in plans)
        self._seed = plans[0][0].record.seed
        indices = [
            index
            for p, texts in enumerate(plans)
            for index in ([-1 - p] if _shares_prompt(texts) else self._text_indices(p))
        ]
        with ExitStack() as on_error:
            self._lease = on_error.enter_context(model.acquire())
            self._queue = GroupQueue(model.engine, self._submit, indices)
            on_error.pop_all()

    @property
    def has_logprobs(self) -> bool:
        """Whether chunks have log-probabilities."""
        return self._plans[0][0].top_logprobs is not None

    def start_info(self) -> dict[str, Any]:
        """Return what is known before any text is generated: the data of a stream's first event."""
        return {"n": self._n, "seed": self._seed, "model": self._model.as_dict()}

    def summary(self) -> dict[str, Any]:
        """Return what is known of all texts together at the end."""
        return {"seed": self._seed, "model": self._model.as_dict(), "usage": self.usage()}

    def usage(self) -> dict[str, int]:
        """Return how many characters were read and generated so far; each prompt is read, and counted, once."""
        return {
            "prompt_chars": self._prompt_chars,
            "generated_chars": sum(self._generated_chars),
            "reused_chars": self._reused_chars,
        }

    def parts(self, poll_interval_s: float) -> Iterator[BatchChunk | BatchResult | None]:
        """Yield parts of the texts as they come, and None before waiting for more: at least every `poll_interval_s`.

        Raises:
            TimedOut: The time was up before a prompt was read.
            ServiceError: A text cannot continue.
        """
        while not self._queue.is_finished:
            received = self._queue.get(0)
            if received is None:
                yield None
                received = self._queue.get(poll_interval_s)
            if received is None:
                continue
            index, item = received
            if self.has_logprobs and isinstance(item, Chunk):
                yield None  # they are computed first, and what came before does not wait for that
            if index < 0:
                self._take_prompt(-1 - index, item)
                continue
            part = self._take(index, item)
            if part is not None:
                yield part

    def close(self) -> None:
        """Stop generating, and release the model. Idempotent."""
        self._queue.close()
        try:
            while self._running:
                _, generation = self._running.popitem()
                generation.release()
        finally:
            self._lease.release()

    def _text_indices(self, prompt: int) -> range:
        return range(prompt * self._n, (prompt + 1) * self._n)

    def _plan(self, index: int) -> GenerationPlan:
        return self._plans[index // self._n][index % self._n]

    def _submit(self, index: int, stream: Stream) -> None:
        if index < 0:
            sequence = self._plans[-1 - index][0].sequence
            self._model.engine.submit(replace(sequence, max_chars=0, stop=(), automaton=None), stream)
        else:
            self._running[index] = self._start(self._model, self._plan(index), stream)

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
        seed = self._plan(index).record.seed
        end = generation.end
        return BatchResult(index, end.finish_reason, seed, self._generated_chars[index], end.mask_bits)

    def _take_prompt(self, prompt: int, item: Item) -> None:
        """Continue every text of a prompt from the state at its end, when it is there."""
        match item:
            case StateCapture() if item.key:
                self._prefixes.put(item.key, item.state.to_bytes())
            case Failed():
                raise item.error
            case End(state=None):
                raise TimedOut(PROMPT_NOT_READ)
            case End(state=state) if state is not None:
                read: dict[str, Any] = {
                    "feed": np.array([state.next_input], dtype=np.int32),
                    "start_position": state.position,
                    "state": state.values,
                    "captures": {},
                    "reused_chars": 0,  # the prompt was counted when it was read
                }
                self._plans[prompt] = [
                    replace(plan, sequence=replace(plan.sequence, **read)) for plan in self._plans[prompt]
                ]
                self._queue.add_next(self._text_indices(prompt))


def _shares_prompt(texts: list[GenerationPlan]) -> bool:
    """Whether several texts continue a prompt that has to be read."""
    return len(texts) > 1 and len(texts[0].sequence.feed) > 1
