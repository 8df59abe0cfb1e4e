"""The use case of POST /v1/completions: prompts become texts, and texts become choices. This module knows no HTTP.

Every error that has a status code of its own is raised by `start`, before the first byte is sent. The first text has
its place in the engine then; the others get theirs as there is room, so that a request is not refused because it asks
for many texts.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from model.network.sampling import MAX_SEED
from service.engine.stream import Chunk, FinishReason
from service.errors import BadRequest, QueueFull
from service.generation.service import GenerationService
from service.generation.stream import RunningGeneration
from service.inspection.service import InspectionService
from service.models.loaded_model import LoadedModel, ModelLease
from service.models.manager import ModelManager
from service.openai.logprobs import UNKNOWN
from service.openai.models import check_name
from service.openai.schemas import DEFAULT_MAX_TOKENS, MAX_TEXTS, CompletionRequest
from service.openai.tokenizer import decode
from service.schemas import GenerateRequest

MAX_LOGPROBS_CHARS = 100_000
"""Characters of an answer with log-probabilities: each takes about 250 bytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of one choice: text, then once a finish reason."""

    index: int
    text: str = ""
    items: list[dict[str, Any]] | None = None  # the log-probability of each character, if they are requested
    finish_reason: FinishReason | None = None
    sum_logprobs: float = 0.0  # of the generated characters of this part


@dataclass(slots=True)
class _Text:
    """A text to be generated."""

    index: int
    prompt: str
    request: GenerateRequest
    generation: RunningGeneration | None = None


class CompletionService:
    """Starts completions."""

    def __init__(self, models: ModelManager, generation: GenerationService, inspection: InspectionService) -> None:
        """Connect the service to what it uses."""
        self._models = models
        self._generation = generation
        self._inspection = inspection

    def start(self, request: CompletionRequest) -> RunningCompletion:
        """Start to answer a request.

        Raises:
            BadRequest: A value cannot be used.
            UnknownModel: The model that the request names is not served.
            QueueFull: Every slot and every place in the queue is taken.
            Overloaded: As many texts as allowed are being scored.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        _check(request, self._generation.max_chars)
        with ExitStack() as on_error:
            lease = on_error.enter_context(self._models.admit())
            name = check_name(request.model, lease.model)
            prompts = self._prompts(request, lease.model)
            logprobs = self._prompt_logprobs(request, lease.model, prompts)
            texts = _texts(request, lease.model, prompts)
            running = RunningCompletion(request, name, lease, self._generation, texts, logprobs)
            on_error.callback(running.close)
            running.start_first()
            on_error.pop_all()
            return running

    def _prompts(self, request: CompletionRequest, model: LoadedModel) -> list[str]:
        """Every prompt as the model reads it. Text is normalized; token ids say exactly which characters are meant."""
        prompts, limit = [], self._generation.max_prompt_chars
        for i, prompt in enumerate(request.prompts):
            field = f"prompt.{i}" if len(request.prompts) > 1 else "prompt"
            if len(prompt) > limit:
                raise BadRequest(field, prompt, f"at most {limit} characters", problem=f"got {len(prompt)} characters")
            if isinstance(prompt, str):
                ids = model.encode(field, model.normalize(prompt), request.on_unknown or "error")
                prompts.append(model.engine.vocab.decode(ids))
            else:
                prompts.append(decode(model, field, prompt))
        return prompts

    def _prompt_logprobs(
        self, request: CompletionRequest, model: LoadedModel, prompts: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """The log-probability of each character of the prompts that the answer repeats, by prompt."""
        if request.logprobs is None:
            return {}
        texts, n = (request.best_of or request.n or 1), request.n or 1
        n_chars = len(prompts) * texts * _max_tokens(request)
        n_chars += n * sum(map(len, prompts)) if request.echo else 0
        if n_chars > MAX_LOGPROBS_CHARS:
            expected = f"at most {MAX_LOGPROBS_CHARS} characters in an answer with logprobs"
            raise BadRequest("logprobs", request.logprobs, expected, problem=f"asks for {n_chars} characters")
        if not request.echo:
            return {}
        return {
            prompt: [UNKNOWN, *self._inspection.logprobs(model, prompt, request.logprobs)[1:]]
            for prompt in set(prompts)
            if prompt
        }


class RunningCompletion:
    """Iterate over `parts`; call `close` at any time, at the latest when the response ends."""

    def __init__(
        self,
        request: CompletionRequest,
        name: str,
        lease: ModelLease,
        generation: GenerationService,
        texts: list[_Text],
        prompt_logprobs: dict[str, list[dict[str, Any]]],
    ) -> None:
        """Take over the model's lease; only CompletionService creates completions."""
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model_name = name
        self.fingerprint = lease.model.fingerprint
        self.request = request
        self._lease = lease
        self._generation = generation
        self._texts = texts
        self._waiting = deque(texts)
        self._prompt_logprobs = prompt_logprobs
        self._has_logprobs = request.logprobs is not None
        self._prompt_tokens = sum(len(text.prompt) for text in texts[:: request.best_of or request.n or 1])
        self._reused_tokens = 0
        self._completion_tokens = 0

    @property
    def n_choices(self) -> int:
        """The number of texts that are generated, those that best_of leaves out included."""
        return len(self._texts)

    def start_first(self) -> None:
        """Give the first text its place in the engine.

        Raises:
            QueueFull: Every slot and every place in the queue is taken.
            Draining: This worker is shutting down.
        """
        if self._waiting and self._waiting[0].request.max_chars:
            self._start(self._waiting[0])

    def parts(self, poll_interval_s: float) -> Iterator[Part | None]:
        """Yield parts of the choices, and None each time there was none for `poll_interval_s`.

        Raises:
            ServiceError: A text cannot continue.
        """
        while self._waiting:
            text = self._waiting.popleft()
            if self.request.echo and text.prompt:
                items = self._prompt_logprobs[text.prompt] if self._has_logprobs else None
                yield Part(text.index, text.prompt, items)
            if not text.request.max_chars:
                yield Part(text.index, finish_reason="length")
                continue
            while not self._start_more(text):
                time.sleep(min(poll_interval_s, 0.05))  # others have taken every place; ours comes when they end
                yield None
            yield from self._generate(text, poll_interval_s)

    def usage(self) -> dict[str, Any]:
        """Return the usage of the whole request so far, in characters."""
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "total_tokens": self._prompt_tokens + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._reused_tokens},
        }

    def close(self) -> None:
        """Stop generating, and release the model. Idempotent."""
        self._waiting.clear()
        try:
            for text in self._texts:
                generation, text.generation = text.generation, None
                if generation is not None:
                    generation.close()
        finally:
            self._lease.release()

    def _generate(self, text: _Text, poll_interval_s: float) -> Iterator[Part | None]:
        generation = text.generation
        assert generation is not None
        for chunk in generation.chunks(poll_interval_s):
            yield self._part(text.index, chunk) if chunk is not None else None
        result = generation.finish()
        text.generation = None
        generation.close()
        self._reused_tokens += result.reused_chars
        yield Part(text.index, finish_reason=result.finish_reason)

    def _part(self, index: int, chunk: Chunk) -> Part:
        self._completion_tokens += len(chunk.text)
        return Part(index, chunk.text, chunk.token_logprobs, sum_logprobs=sum(chunk.logprobs))

    def _start_more(self, text: _Text) -> bool:
        """Give a text its place, and then others while there are any; return whether it has one."""
        try:
            for each in (text, *self._waiting):
                if each.generation is None:
                    self._start(each)
        except QueueFull:
            pass
        return text.generation is not None

    def _start(self, text: _Text) -> None:
        text.generation = self._generation.generate_unsaved(text.request, self._lease.model, text.prompt)


def _check(request: CompletionRequest, max_chars: int) -> None:
    """Check fields that depend on one another, and the server's limit."""
    if _max_tokens(request) > max_chars:
        raise BadRequest("max_tokens", _max_tokens(request), f"at most {max_chars}")
    if (request.min_tokens or 0) > _max_tokens(request):
        raise BadRequest("min_tokens", request.min_tokens, f"at most max_tokens, which is {_max_tokens(request)}")
    n, best_of = request.n or 1, request.best_of
    if best_of is not None and best_of < n:
        raise BadRequest("best_of", best_of, f"at least n = {n}")
    if best_of is not None and best_of > n and request.stream:
        raise BadRequest("best_of", best_of, f"n = {n} with stream: the best is known at the end only")
    texts = len(request.prompts) * (best_of or n)
    if texts > MAX_TEXTS:
        field = "best_of" if best_of is not None else "n"
        raise BadRequest(field, best_of or n, f"at most {MAX_TEXTS}", problem=f"asks for {texts} texts together")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options", "an object", "null without stream", problem="needs stream")


def _bias_by_character(request: CompletionRequest, model: LoadedModel) -> dict[str, float]:
    """`logit_bias`, whose keys are token ids, by character."""
    characters = model.engine.vocab.characters
    for token_id in request.logit_bias or {}:
        if int(token_id) >= len(characters):
            raise BadRequest("logit_bias", token_id, f"token ids from 0 to {len(characters) - 1} as keys")
    return {characters[int(token_id)]: bias for token_id, bias in (request.logit_bias or {}).items()}


def _max_tokens(request: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _texts(request: CompletionRequest, model: LoadedModel, prompts: list[str]) -> list[_Text]:
    """Every text to be generated. The k-th of a prompt has the request's seed plus k, so the first is that of n = 1."""
    n = request.best_of or request.n or 1
    seed = request.seed_63 if request.seed_63 is not None else secrets.randbits(53)
    known = set(model.engine.vocab.characters)
    stop = [stop for stop in map(model.normalize, request.stop_strings) if stop and set(stop) <= known]
    fields = {
        **request.sampling,
        "max_chars": _max_tokens(request),
        "min_chars": request.min_tokens or 0,
        "logit_bias": _bias_by_character(request, model),
        "stop": stop,
        "logprobs": request.logprobs,
    }
    seeds = [GenerateRequest.model_validate({**fields, "seed": (seed + k) & MAX_SEED}) for k in range(n)]
    return [_Text(p * n + k, prompt, seeds[k]) for p, prompt in enumerate(prompts) for k in range(n)]
