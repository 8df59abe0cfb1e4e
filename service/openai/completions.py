"""The use case of POST /v1/completions: prompts become texts, and texts become choices. This module knows no HTTP.

Every error that has a status code of its own is raised by `start`, before the first byte is sent. The texts of all
prompts are generated side by side, as those of /generate with n are.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from model.structured_outputs.specification import StructuredOutputs
from service.engine.stream import FinishReason
from service.errors import BadRequest, Draining
from service.generation.batch import BatchChunk, RunningBatch
from service.generation.service import GenerationService
from service.inspection.service import InspectionService
from service.models.loaded_model import LoadedModel
from service.models.manager import ModelManager
from service.openai.logprobs import UNKNOWN
from service.openai.models import SERVED, acquire
from service.openai.schemas import DEFAULT_MAX_TOKENS, CompletionRequest
from service.openai.tokenizer import decode
from service.schemas import MAX_TEXTS, GenerateRequest

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


class CompletionService:
    """Starts completions."""

    def __init__(self, models: ModelManager, generation: GenerationService, inspection: InspectionService) -> None:
        """Connect the service to what it uses."""
        self._models = models
        self._generation = generation
        self._inspection = inspection

    def start(self, request: CompletionRequest, check_client: Callable[[], None]) -> RunningCompletion:
        """Start to answer a request.

        Args:
            request: The request.
            check_client: Called now and then while the prompts are scored; what it raises ends that.

        Raises:
            BadRequest: A value cannot be used.
            UnknownModel: The model that the request names does not exist.
            QueueFull: Every slot and every place in the queue is taken.
            Overloaded: As many texts as allowed are being scored.
            NoModel: No model is served.
            Draining: This worker is shutting down.
        """
        _check(request, self._generation.max_chars)
        if self._models.is_closed:
            raise Draining("this worker is shutting down; send the request to another one")
        with acquire(self._models, request.model) as lease, ExitStack() as on_error:
            model = lease.model
            name = SERVED if request.model is None else request.model
            prompts = self._prompts(request, model)
            _check_logprobs(request, prompts)
            batch = None
            if _max_tokens(request) or _specification(request) is not None:
                batch = self._continue(request, model, prompts)
                on_error.callback(batch.close)
            logprobs = self._prompt_logprobs(request, model, prompts, check_client)
            on_error.pop_all()
            return RunningCompletion(request, name, model.fingerprint, prompts, logprobs, batch)

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

    def _continue(self, request: CompletionRequest, model: LoadedModel, prompts: list[str]) -> RunningBatch:
        try:
            return self._generation.continue_prompts(_generate_request(request, model), model, prompts)
        except BadRequest as e:
            raise BadRequest(_field(request, e.field), e.value, e.expected, problem=e.problem) from e

    def _prompt_logprobs(
        self, request: CompletionRequest, model: LoadedModel, prompts: list[str], check_client: Callable[[], None]
    ) -> dict[str, list[dict[str, Any]]]:
        """The log-probability of each character of the prompts that the answer repeats, by prompt."""
        if request.logprobs is None or not request.echo:
            return {}
        return {
            prompt: [UNKNOWN, *self._inspection.logprobs(model, prompt, request.logprobs, check_client)[1:]]
            for prompt in set(prompts)
            if prompt
        }


class RunningCompletion:
    """Iterate over `parts`; call `close` at any time, at the latest when the response ends."""

    def __init__(
        self,
        request: CompletionRequest,
        model_name: str,
        fingerprint: str,
        prompts: list[str],
        prompt_logprobs: dict[str, list[dict[str, Any]]],
        batch: RunningBatch | None,
    ) -> None:
        """Take over what was started; only CompletionService creates completions.

        Args:
            request: The request.
            model_name: As the answer names the model.
            fingerprint: Of the model.
            prompts: As the model reads them.
            prompt_logprobs: Of each prompt that the answer repeats, if they are requested.
            batch: Generates the texts; None if nothing is to be generated.
        """
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model_name = model_name
        self.fingerprint = fingerprint
        self.request = request
        self._prompts = prompts
        self._prompt_logprobs = prompt_logprobs
        self._batch = batch

    @property
    def n_choices(self) -> int:
        """The number of texts that are generated, those that best_of leaves out included."""
        return len(self._prompts) * _n_texts(self.request)

    def parts(self, poll_interval_s: float) -> Iterator[Part | None]:
        """Yield parts of the choices, and None before waiting for more: at least every `poll_interval_s`.

        Raises:
            ServiceError: A text cannot continue.
        """
        if self.request.echo:
            yield from self._echo()
        if self._batch is None:
            for index in range(self.n_choices):
                yield Part(index, finish_reason="length")
            return
        for part in self._batch.parts(poll_interval_s):
            if isinstance(part, BatchChunk):
                chunk = part.chunk
                yield Part(part.index, chunk.text, chunk.token_logprobs, sum_logprobs=sum(chunk.logprobs.tolist()))
            else:
                yield part if part is None else Part(part.index, finish_reason=part.finish_reason)

    def usage(self) -> dict[str, Any]:
        """Return the usage of the whole request so far, in characters."""
        used = self._batch.usage() if self._batch is not None else {"generated_chars": 0, "reused_chars": 0}
        prompt_tokens, completion_tokens = sum(map(len, self._prompts)), used["generated_chars"]
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": used["reused_chars"]},
        }

    def close(self) -> None:
        """Stop generating. Idempotent."""
        if self._batch is not None:
            self._batch.close()

    def _echo(self) -> Iterator[Part]:
        """The prompt at the beginning of each choice."""
        n = _n_texts(self.request)
        for p, prompt in enumerate(self._prompts):
            items = self._prompt_logprobs[prompt] if prompt and self.request.logprobs is not None else None
            for index in range(p * n, (p + 1) * n) if prompt else ():
                yield Part(index, prompt, items)


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
    texts = len(request.prompts) * _n_texts(request)
    if texts > MAX_TEXTS:
        field = "best_of" if best_of is not None else "n"
        raise BadRequest(field, best_of or n, f"at most {MAX_TEXTS}", problem=f"{texts} texts together")
    if request.structured_outputs is not None and request.response_format is not None:
        value = request.response_format.type
        raise BadRequest("response_format", value, "null with structured_outputs: a text has one constraint")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options", "an object", "null without stream", problem="needs stream")


def _check_logprobs(request: CompletionRequest, prompts: list[str]) -> None:
    """Check that the answer does not become too long with log-probabilities."""
    if request.logprobs is None:
        return
    n_chars = len(prompts) * _n_texts(request) * _max_tokens(request)
    n_chars += (request.n or 1) * sum(map(len, prompts)) if request.echo else 0
    if n_chars > MAX_LOGPROBS_CHARS:
        expected = f"at most {MAX_LOGPROBS_CHARS} characters in an answer with logprobs"
        raise BadRequest("logprobs", request.logprobs, expected, problem=f"the answer would have {n_chars} characters")


def _bias_by_character(request: CompletionRequest, model: LoadedModel) -> dict[str, float]:
    """`logit_bias`, whose keys are token ids, by character."""
    characters = model.engine.vocab.characters
    for token_id in request.logit_bias or {}:
        if int(token_id) >= len(characters):
            raise BadRequest("logit_bias", token_id, f"token ids from 0 to {len(characters) - 1} as keys")
    return {characters[int(token_id)]: bias for token_id, bias in (request.logit_bias or {}).items()}


def _specification(request: CompletionRequest) -> StructuredOutputs | None:
    """What each text must be."""
    if request.structured_outputs is not None:
        return request.structured_outputs.specification
    return None if request.response_format is None else request.response_format.specification


def _field(request: CompletionRequest, field: str) -> str:
    """The name of a field of GenerateRequest in this protocol."""
    if request.response_format is not None and field.startswith("structured_outputs."):
        kind, _, rest = field.removeprefix("structured_outputs.").partition(".")
        return "response_format" + (".json_schema.schema" if kind == "json" else "") + (f".{rest}" if rest else "")
    return {"max_chars": "max_tokens", "min_chars": "min_tokens"}.get(field, field)


def _max_tokens(request: CompletionRequest) -> int:
    return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _n_texts(request: CompletionRequest) -> int:
    """The number of texts that are generated for each prompt."""
    return request.best_of or request.n or 1


def _generate_request(request: CompletionRequest, model: LoadedModel) -> GenerateRequest:
    """The request for the texts of one prompt. Text k has the request's seed plus k, so the first is that of n = 1."""
    known = set(model.engine.vocab.characters)
    fields = {
        **request.sampling,
        "max_chars": _max_tokens(request),
        "min_chars": request.min_tokens or 0,
        "logit_bias": _bias_by_character(request, model),
        "stop": [stop for stop in map(model.normalize, request.stop_strings) if stop and set(stop) <= known],
        "logprobs": request.logprobs,
        "seed": request.seed_63,
        "n": _n_texts(request),
    }
    specification = _specification(request)
    if specification is not None:
        fields["structured_outputs"] = specification.as_dict()
    return GenerateRequest.model_validate(fields)
