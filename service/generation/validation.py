"""Validate a GenerateRequest against the loaded model and the server's limits, before any work is done."""

from __future__ import annotations

from dataclasses import dataclass

from model.structured_outputs.specification import StructuredOutputs
from service.errors import BadRequest
from service.models.loaded_model import LoadedModel
from service.schemas import GenerateRequest


@dataclass(frozen=True, slots=True)
class ValidatedRequest:
    """A request that the model can answer."""

    request: GenerateRequest
    prompt: str  # as the model reads it: normalized, and without the characters that were skipped
    logit_bias: dict[str, float]  # by character, as the model reads it
    stop: list[str]  # the stop strings that the model can generate
    structured_outputs: StructuredOutputs | None


def validate(request: GenerateRequest, model: LoadedModel, max_chars: int, max_prompt_chars: int) -> ValidatedRequest:
    """Check what the schema cannot know: the server's limits and the model's vocabulary.

    Raises:
        BadRequest: A value cannot be used.
    """
    if request.max_chars > max_chars:
        raise BadRequest("max_chars", request.max_chars, f"at most {max_chars}")
    n_chars = len(request.prompt)
    if n_chars > max_prompt_chars:
        problem = f"got {n_chars} characters"
        raise BadRequest("prompt", request.prompt, f"at most {max_prompt_chars} characters", problem=problem)
    if request.position is not None and request.session_id is None:
        raise BadRequest("position", request.position, "a session_id beside it", problem="belongs to a session")
    if request.n > 1 and request.session_id is not None:
        raise BadRequest("n", request.n, "1 with a session_id, which is for one text: fork the session for others")
    prompt = model.normalize(request.prompt)
    ids = model.encode("prompt", prompt, request.on_unknown)
    if len(ids) != len(prompt):
        prompt = model.engine.vocab.decode(ids)
    if request.min_chars > request.max_chars:
        raise BadRequest("min_chars", request.min_chars, f"at most max_chars, which is {request.max_chars}")
    bias, stop = _logit_bias(model, request), _stop_strings(model, request)
    return ValidatedRequest(request, prompt, bias, stop, _structured_outputs(model, request))


def check_penalty_window(request: GenerateRequest, recent_text_chars: int) -> None:
    """Check that a session keeps as much text as the penalties look at, so that they continue with it.

    Raises:
        BadRequest: It does not.
    """
    sampling = request.sampling
    if sampling.has_penalties and sampling.penalty_window > recent_text_chars:
        expected = f"at most {recent_text_chars}, the characters that a session keeps (SESSION_RECENT_TEXT_CHARS)"
        raise BadRequest("penalty_window", sampling.penalty_window, expected)


def _logit_bias(model: LoadedModel, request: GenerateRequest) -> dict[str, float]:
    """The biases by normalized character, without characters that are skipped."""
    biases: dict[str, float] = {}
    for key, value in request.logit_bias.items():
        character = model.normalize(key)
        if len(character) != 1:
            raise BadRequest("logit_bias", key, "single characters as keys")
        if len(model.encode(f"logit_bias.{key}", character, request.on_unknown)):
            biases[character] = value
    return biases


def _stop_strings(model: LoadedModel, request: GenerateRequest) -> list[str]:
    """The stop strings without those that can never occur because the vocabulary lacks one of their characters."""
    possible = []
    for i, requested in enumerate(request.stop):
        stop = model.normalize(requested)
        if not stop:
            raise BadRequest(f"stop.{i}", requested, "a character other than a byte order mark")
        ids = model.encode(f"stop.{i}", stop, request.on_unknown)
        if len(ids) == len(stop):
            possible.append(stop)
    return possible


def _structured_outputs(model: LoadedModel, request: GenerateRequest) -> StructuredOutputs | None:
    """The specification, if a text of it can be written within max_chars."""
    if request.structured_outputs is None:
        return None
    spec = request.structured_outputs.specification
    for name, allowed in (("stop", []), ("min_chars", 0)):
        if getattr(request, name) != allowed:
            expected = "none with structured_outputs: such a text ends where its constraint does"
            raise BadRequest(name, getattr(request, name), expected)
    automaton = model.compile(spec)
    if request.max_chars < automaton.shortest:
        expected = f"at least {automaton.shortest}, the length of the shortest text of structured_outputs"
        raise BadRequest("max_chars", request.max_chars, expected)
    return spec
