"""A generation that runs: chunks of text as the engine makes them, then its result.

It runs on the request's thread; the engine does not know it. Every snapshot that it passes on is the state of exactly
the text up to a position, so that any worker can continue from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from model.network.state import HiddenState
from service.engine.stream import Chunk, End, Failed, FinishReason, Item, StateCapture, Stream
from service.errors import PROMPT_NOT_READ, ServiceError, SessionConflict, TimedOut
from service.generation.commit import CommitPolicy
from service.generation.plan import GenerationPlan, Origin
from service.inspection.token_logprobs import TokenLogprobs
from service.models.loaded_model import LoadedModel, ModelLease
from service.store.prefixes import PrefixStore
from service.store.sessions import Session

log = logging.getLogger(__name__)
_CANCEL_POLL_S = 5.0
BITS_DIGITS = 4


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """How a generation ended: the body of a JSON answer without its text, and the data of a stream's last event."""

    finish_reason: FinishReason
    session_id: str | None
    position: int
    seed: int
    model: dict[str, str]
    prompt_chars: int
    generated_chars: int
    reused_chars: int
    saved: bool
    reencoded: bool
    mask_bits: float | None = None  # of a constrained text: what the masks removed of its probability

    def as_dict(self) -> dict[str, Any]:
        """Return the result as the API shows it."""
        mask_bits = {} if self.mask_bits is None else {"mask_bits": round(self.mask_bits, BITS_DIGITS)}
        return {
            "finish_reason": self.finish_reason,
            "session_id": self.session_id,
            "position": self.position,
            "seed": self.seed,
            "model": self.model,
            "usage": {
                "prompt_chars": self.prompt_chars,
                "generated_chars": self.generated_chars,
                "reused_chars": self.reused_chars,
            },
            "saved": self.saved,
            "reencoded": self.reencoded,
            **mask_bits,
        }


class RunningGeneration:
    """Iterate over `chunks`, then call `finish`; call `close` at any time, at the latest when the response ends.

    `close` is idempotent and necessary: it gives back the model's lease.
    """

    def __init__(
        self,
        plan: GenerationPlan,
        lease: ModelLease,
        stream: Stream,
        policy: CommitPolicy,
        logprobs: TokenLogprobs | None,
        prefixes: PrefixStore,
        recent_text_chars: int,
    ) -> None:
        """Take over what was started; only GenerationService starts generations.

        Args:
            plan: What was started.
            lease: Of the plan's model.
            stream: The engine's.
            policy: What is stored of it.
            logprobs: Computes the log-probabilities of each character, if they are requested.
            prefixes: Where captured states of the prompt are cached.
            recent_text_chars: The length of the recent text that a session keeps.
        """
        self._plan = plan
        self._lease = lease
        self._stream = stream
        self._policy = policy
        self._logprobs = logprobs
        self._prefixes = prefixes
        self._recent_text_chars = recent_text_chars
        self._recent = plan.recent
        self._position = plan.received_position  # of the text that the client has
        self._end: End | None = None
        self._is_over = False  # the session is committed or given up
        self._is_announced = False  # the client knows the session's id before the end

    @property
    def model(self) -> LoadedModel:
        """The model that generates the text."""
        return self._lease.model

    @property
    def has_logprobs(self) -> bool:
        """Whether chunks have log-probabilities."""
        return self._plan.top_logprobs is not None

    def start_info(self) -> dict[str, Any]:
        """Return what is known before any text is generated: the data of a stream's first event."""
        self._is_announced = True
        return {
            "session_id": self._policy.session_id,
            "position": self._position,
            "seed": self._plan.record.seed,
            "model": self.model.as_dict(),
            "reencoded": self._plan.record.reencoded,
        }

    def chunks(self, poll_interval_s: float) -> Iterator[Chunk | None]:
        """Yield new text, block by block, and None before waiting for more: at least every `poll_interval_s`.

        The end is no wait: the last text goes with what `finish` brings, when the store has the session.

        Raises:
            SessionConflict: Another request has taken the session over.
            ServiceError: The text cannot continue.
        """
        while self._end is None:
            item = self._stream.get(0)
            if item is None or (isinstance(item, Chunk) and self._takes_long(item)):
                yield None
            if item is None:
                item = self._stream.get(poll_interval_s)
            self._policy.keep_alive()
            if item is None:
                continue
            if isinstance(item, Chunk):
                yield self._take(item)
            else:
                self.handle(item)

    def handle(self, item: Item) -> Chunk | None:
        """Process an item of the stream, for a reader of many streams; return the text that it brings, if any.

        Raises:
            ServiceError: The text cannot continue.
        """
        match item:
            case Chunk():
                return self._take(item)
            case StateCapture():
                self._take_capture(item)
            case End():
                self._end = item
            case Failed():
                self._fail(item.error)
        return None

    @property
    def end(self) -> End | None:
        """How the text ended; None while it runs."""
        return self._end

    def finish(self) -> GenerationResult:
        """Commit the text that was sent, after the last chunk.

        Raises:
            SessionConflict: Another request has taken the session over.
            TimedOut: The time was up before the prompt was read.
        """
        assert self._end is not None, "finish follows the last chunk"
        self._is_over = True
        try:
            saved = self._commit(self._end)
        finally:
            self._lease.release()
        state = self._end.state
        if state is None:
            raise TimedOut(f"{PROMPT_NOT_READ}; nothing of it is stored, and a session is where it was")
        record = self._plan.record
        return GenerationResult(
            finish_reason=self._end.finish_reason,
            session_id=self._policy.session_id,
            position=state.position,
            seed=record.seed,
            model=self.model.as_dict(),
            prompt_chars=len(record.prompt),
            generated_chars=state.position - record.prompt_end,
            reused_chars=self._plan.sequence.reused_chars,
            saved=saved,
            reencoded=record.reencoded,
            mask_bits=self._end.mask_bits,
        )

    def release(self) -> None:
        """Give up a text that belongs to no session, or has ended: stop generating, and release the model."""
        self._is_over = True
        self._stream.close()
        self._lease.release()

    def close(self) -> None:
        """Stop generating if that is not over, keep the session at the text so far, and release the model."""
        try:
            if not self._is_over:
                self._is_over = True
                self._cancel()
        finally:
            self._stream.close()
            self._lease.release()

    def _cancel(self) -> None:
        self._logprobs = None
        self._stream.close()
        try:
            for _ in self.chunks(_CANCEL_POLL_S):
                pass
            if self._end is not None:
                self._commit(self._end)
        except SessionConflict:
            pass  # the request that has taken the session over saves it
        except ServiceError as e:
            log.info("a client left, and its session could not be saved where it was: %s", e.code)

    def _takes_long(self, chunk: Chunk) -> bool:
        """Whether text that came before should not wait for this chunk: its state is stored, or it is looked at."""
        return chunk.snapshot is not None or self._logprobs is not None

    def _take(self, chunk: Chunk) -> Chunk | None:
        """Process a chunk; return the part of it that the client does not have yet."""
        self._recent = self._recent.generate(chunk.text).last(self._recent_text_chars)
        if chunk.snapshot is not None:
            self._policy.snapshot(self._session(chunk.snapshot))
        if self._logprobs is not None:
            chunk = replace(chunk, token_logprobs=self._logprobs.compute(chunk.text, chunk.logprobs))
        n_new = chunk.position - self._position  # a resumed turn generates text again that the client has
        if n_new <= 0:
            return None
        self._position = chunk.position
        if n_new >= len(chunk.text):
            return chunk
        details = chunk.token_logprobs[-n_new:] if chunk.token_logprobs is not None else None
        return replace(chunk, text=chunk.text[-n_new:], logprobs=chunk.logprobs[-n_new:], token_logprobs=details)

    def _take_capture(self, capture: StateCapture) -> None:
        state = capture.state
        if self._logprobs is not None and state.position == self._plan.record.prompt_end:
            self._logprobs.begin_at(state.values, state.next_input)
        if capture.key:
            self._prefixes.put(capture.key, state.to_bytes())

    def _fail(self, error: ServiceError) -> None:
        self._is_over = True
        self._policy.abandon()
        self._lease.release()
        raise error

    def _commit(self, end: End) -> bool:
        if end.state is None and self._plan.origin is Origin.NEW and not self._can_be_resumed(end):
            self._policy.discard()
            return False
        return self._policy.finish(end, self._session(end.state) if end.state is not None else None)

    def _can_be_resumed(self, end: End) -> bool:
        """Whether a client may ask again for a turn of which nothing was read: it left, and it can name the turn."""
        can_name = self._is_announced or not self._plan.is_new_session or bool(self._plan.record.key)
        return end.finish_reason == "cancelled" and can_name

    def _session(self, state: HiddenState) -> Session:
        recent = self._recent.last(self._recent_text_chars)
        record = self._plan.record
        return Session(state, record.seed, recent.text, recent.generated, record.model)
