"""Validate a request for items against the loaded model and the server's limits, before any work is done."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from model.errors import ConfigError
from model.network.sampling import SamplingParams
from model.stepper.generate import bias_by_id
from model.stepper.items import ItemConstraints
from model.text.items.record import ItemRecord
from service.errors import BadRequest
from service.generation.validation import validate
from service.models.loaded_model import LoadedModel
from service.schemas import GenerateRequest

_FIELDS = ("unique", "novel")
_CONSTRAINT_FIELDS = {"prefix": "prompt"}
"""Names of the constraints in a request, where they differ."""


@dataclass(frozen=True, slots=True)
class ItemsPlan:
    """Which items to generate, and how."""

    constraints: ItemConstraints
    record: ItemRecord  # of the model
    sampling: SamplingParams
    seed: int
    logit_bias: dict[int, float]  # id -> what is added to its logit
    deadline: float  # time.monotonic() at which generation ends with what there is


def check_item_fields(request: GenerateRequest) -> None:
    """Check that a request for a text has no field that belongs to items.

    Raises:
        BadRequest: It has one.
    """
    for name in _FIELDS:
        if name in request.model_fields_set:
            raise BadRequest(name, getattr(request, name), "items beside it", problem="is for items of a list")


def plan_items(
    request: GenerateRequest, model: LoadedModel, max_chars: int, max_prompt_chars: int, deadline: float
) -> ItemsPlan:
    """Return the plan of a request whose `items` is set.

    Args:
        request: The request.
        model: Generates the items.
        max_chars: The longest item that the server allows.
        max_prompt_chars: The longest prompt that it allows.
        deadline: time.monotonic() at which generation ends.

    Raises:
        BadRequest: A value cannot be used; with items, some fields belong to texts only.
    """
    assert request.items is not None
    _check_text_fields(request)
    longest = request.max_chars
    if "max_chars" not in request.model_fields_set and model.items is not None:
        longest = min(model.items.layout.max_item_chars, max_chars)
    shortest = request.min_chars if "min_chars" in request.model_fields_set else 1
    validated = validate(
        request.model_copy(update={"max_chars": longest, "min_chars": min(shortest, longest)}),
        model,
        max_chars,
        max_prompt_chars,
    )
    constraints = ItemConstraints(
        request.items,
        unique=request.unique,
        novel=request.novel,
        prefix=validated.prompt,
        min_chars=shortest,
        max_chars=longest,
    )
    try:
        record = constraints.check(model.items, model.engine.vocab)
    except ConfigError as e:
        raise BadRequest(_CONSTRAINT_FIELDS.get(e.field, e.field), e.value, e.expected, problem=e.problem) from e
    seed = secrets.randbits(53) if request.seed is None else request.seed
    bias = bias_by_id(model.engine.vocab, validated.logit_bias)
    return ItemsPlan(constraints, record, request.sampling, seed, bias, deadline)


def _check_text_fields(request: GenerateRequest) -> None:
    """Check that the fields of sessions, stop strings and many texts are not set: items have none of these."""
    for name, default in (("n", 1), ("session_id", None), ("position", None), ("stop", []), ("logprobs", None)):
        value = getattr(request, name)
        if value != default:
            expected = {"n": "1 with items", "stop": "none with items: an item ends by itself"}
            raise BadRequest(name, value, expected.get(name, "null with items, which belong to no session"))
    if request.structured_outputs is not None:
        value = request.structured_outputs.specification.as_dict()
        raise BadRequest("structured_outputs", value, "null with items, which are constrained by the list")
