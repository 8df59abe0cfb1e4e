"""The request bodies of the API, and how a body is validated. This module knows no Flask.

The sampling parameters of POST /generate are derived from `SamplingParams`, where each is declared once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from model.checkpoints.names import DEFAULT, NAME, NAME_EXPECTED, NO_NAME, is_model_name
from model.network.penalties import MAX_LOGIT_BIAS
from model.network.sampling import DEFAULT_CHARS, MAX_SEED, SamplingParameter, SamplingParams
from model.structured_outputs.specification import KINDS, MAX_CHOICES, MAX_JSON_BYTES, StructuredOutputs
from model.text.items.record import DEFAULT_STATISTIC, Statistic
from service.errors import BadRequest, MalformedBody
from service.store.sessions import SESSION_ID

SessionId = Annotated[str, StringConstraints(pattern=f"^{SESSION_ID}$")]
ModelRef = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""A model that answers: its name, or the id of a checkpoint, which has the form of a name."""


def _check_name(value: str) -> str:
    if not is_model_name(value):
        raise unexpected(NAME_EXPECTED)
    return value


ModelName = Annotated[
    str,
    AfterValidator(_check_name),
    Field(json_schema_extra={"pattern": f"^{NAME}$", "not": {"pattern": f"^{NO_NAME}$"}}),
]
_MODEL = "the name of the model, or the id of a checkpoint, as in GET /models"
OnUnknown = Literal["error", "skip"]
MAX_STOP_STRINGS, MAX_STOP_CHARS = 16, 256
MAX_BIASES = 1000
MAX_SCORED_TEXTS = 100_000
MAX_TEXTS = 256
"""Texts of one request."""
MAX_ITEMS = 100_000
"""Items of one request."""
MAX_CORPORA = 64
MAX_TOP_LOGPROBS = 10
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
MAX_UNITS = 16
MAX_ERRORS = 16
"""Fields that one answer says something about."""
_ON_UNKNOWN = "what to do with characters that are not in the model's vocabulary: answer 422, or skip them"


class Body(BaseModel):
    """Base of all bodies. Strict: no unknown field, no string for a number, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def _sampling_field(parameter: SamplingParameter) -> Any:
    """The type and the pydantic field of one sampling parameter."""

    def check(value: float) -> float:
        if not parameter.accepts(value):
            raise unexpected(parameter.expected)
        return value

    field = Field(parameter.default, description=parameter.help, json_schema_extra=parameter_schema(parameter))
    return Annotated[parameter.type, AfterValidator(check)], field


def parameter_schema(parameter: SamplingParameter) -> dict[str, Any]:
    """Return the accepted values of a sampling parameter as keywords of a JSON schema."""
    minimum = "exclusiveMinimum" if parameter.exclusive_minimum else "minimum"
    limits: dict[str, Any] = {minimum: parameter.minimum, "maximum": parameter.maximum}
    return {"anyOf": [{"const": 0}, limits]} if parameter.allows_zero else limits


if TYPE_CHECKING:

    class _SamplingFields(Body):
        """The sampling parameters as fields; code reads them through GenerateRequest.sampling."""
else:
    _SamplingFields = create_model(
        "SamplingFields", __base__=Body, **{p.name: _sampling_field(p) for p in SamplingParams.fields()}
    )


class StructuredOutputsField(Body):
    """`structured_outputs`: the names are those of vLLM."""

    regex: str | None = Field(
        None, description="a regular expression in the syntax of Python's re that the text matches wholly"
    )
    choice: list[str] | None = Field(
        None,
        description="the text is one of these",
        json_schema_extra={"minItems": 1, "maxItems": MAX_CHOICES},
    )
    json_schema: dict[str, Any] | None = Field(None, alias="json", description="a JSON schema; the text is JSON of it")
    json_object: Literal[True] | None = Field(
        None, description="true: the text is a flat JSON object of strings, numbers, booleans and nulls"
    )

    @model_validator(mode="after")
    def _check_kinds(self) -> StructuredOutputsField:
        if len(self._given()) != 1:
            raise unexpected(f"an object with exactly one of {', '.join(KINDS)}")
        check_length(self.specification)
        return self

    @field_validator("choice")
    @classmethod
    def _check_choice(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not 1 <= len(value) <= MAX_CHOICES:
            raise unexpected(f"1 to {MAX_CHOICES} texts")
        return value

    def _given(self) -> dict[str, Any]:
        values = (self.regex, self.choice, self.json_schema, self.json_object)
        return {kind: value for kind, value in zip(KINDS, values, strict=True) if value is not None}

    @property
    def specification(self) -> StructuredOutputs:
        """What the text must be."""
        return StructuredOutputs.from_dict(self._given())


class GenerateRequest(_SamplingFields):
    """POST /generate."""

    prompt: str = Field("", description="text to continue; in a session, it is appended to the session's text")
    session_id: SessionId | None = Field(None, description="continue this session; without it, a new one is created")
    max_chars: int = Field(
        DEFAULT_CHARS, ge=0, description="generate at most this many characters; 0 only reads the prompt"
    )
    stop: list[str] = Field(
        default_factory=list,
        description="stop strings: the text ends before the first of these",
        json_schema_extra={
            "maxItems": MAX_STOP_STRINGS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        },
    )
    n: int = Field(
        1,
        ge=1,
        le=MAX_TEXTS,
        description="generate so many texts, without a session; text i (from 0) has the seed plus i",
    )
    min_chars: int = Field(
        0,
        ge=0,
        description="stop strings are not matched in so many generated characters, so the text is as long at least",
    )
    items: int | None = Field(
        None,
        ge=1,
        le=MAX_ITEMS,
        description="generate so many whole items of a model of a list; the prompt is the beginning of each, and "
        "min_chars (default 1) and max_chars (default: as in training) are of an item",
    )
    unique: bool = Field(True, description="of items: no two are equal")
    novel: bool = Field(
        False,
        description="of items: none is in the list, be it trained on or held out (a model of an earlier version knows "
        "only the items that it trained on)",
    )
    logit_bias: dict[str, float] = Field(
        default_factory=dict,
        description="what is added to the logit of single characters: -100 to 100 by character; -100 all but excludes "
        "one",
        json_schema_extra={
            "maxProperties": MAX_BIASES,
            "propertyNames": {"minLength": 1},
            "additionalProperties": {"type": "number", "minimum": -MAX_LOGIT_BIAS, "maximum": MAX_LOGIT_BIAS},
        },
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="default: the session's seed, or a random one")
    position: int | None = Field(None, ge=0, description="rewind the session to this position first")
    on_new_model: Literal["reencode", "conflict"] = Field(
        "reencode",
        description="for a session written by a model that is no longer served: re-encode the session's recent text, "
        "or answer 409",
    )
    model: ModelRef | None = Field(None, description=f"{_MODEL}; default: the session's, or `{DEFAULT}`")
    timeout_s: float | None = Field(None, gt=0, le=86400, description="end the text after this many seconds")
    stream: bool = Field(False, description="answer as server-sent events, one for each block of characters")
    on_unknown: OnUnknown = Field("error", description=_ON_UNKNOWN)
    logprobs: TopLogprobs | None = Field(
        None, description="return the log-probability of each character, and of this many most probable ones"
    )
    structured_outputs: StructuredOutputsField | None = Field(
        None,
        description="the constraint of the text, within max_chars: a regular expression, a list of choices or a "
        "JSON schema; docs/structured-outputs.md",
    )

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: list[str]) -> list[str]:
        if len(value) > MAX_STOP_STRINGS or any(not 1 <= len(s) <= MAX_STOP_CHARS for s in value):
            raise unexpected(f"at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARS} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, value: dict[str, float]) -> dict[str, float]:
        bound = int(MAX_LOGIT_BIAS)
        if len(value) > MAX_BIASES or any(not key or abs(bias) > bound for key, bias in value.items()):
            raise unexpected(f"at most {MAX_BIASES} characters, each with a number from -{bound} to {bound}")
        return value

    @property
    def sampling(self) -> SamplingParams:
        """All sampling parameters."""
        return SamplingParams.from_attributes(self)


def one_message(expected: str) -> WrapValidator:
    """Replace the errors of all members of a union by one."""

    def check(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
        try:
            return inner(value)
        except ValidationError as e:
            raise unexpected(expected) from e

    return WrapValidator(check)


_NonEmpty = Annotated[str, StringConstraints(min_length=1)]
ScoredText = Annotated[
    _NonEmpty | Annotated[list[_NonEmpty], Field(min_length=1, max_length=MAX_SCORED_TEXTS)],
    one_message(f"a text of at least 1 character(s), or a list of 1 to {MAX_SCORED_TEXTS} such texts"),
]


class ScoreRequest(Body):
    """POST /score."""

    text: ScoredText = Field(description="the text to score, or a list of texts")
    session_id: SessionId | None = Field(
        None, description="score the text as the continuation of this session, which does not change"
    )
    logprobs: TopLogprobs | None = Field(None, description="as for POST /generate, at temperature 1")
    rank_by: Statistic | None = Field(
        None,
        description="with a model of a list and a list of items: what each is ranked by among the validation items; "
        f"default {DEFAULT_STATISTIC}",
    )
    model: ModelRef | None = Field(None, description=f"{_MODEL}; default: the session's, or `{DEFAULT}`")
    on_unknown: OnUnknown = Field("error", description=_ON_UNKNOWN)


class InspectRequest(Body):
    """POST /inspect."""

    text: str = Field(min_length=1, description="the text to read, from the initial state")
    layer: int = Field(0, ge=0, description="a layer of the network; 0 is the lowest")
    units: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list,
        description="hidden units of which all gates, c and h are returned for each character",
        json_schema_extra={"maxItems": MAX_UNITS, "uniqueItems": True},
    )
    map: Literal["i", "f", "g", "o", "c", "h"] | None = Field(
        None, description="return this quantity of all units for each character; c is returned as tanh(c)"
    )
    model: ModelRef | None = Field(None, description=f"{_MODEL}; default: `{DEFAULT}`")
    on_unknown: OnUnknown = Field("error", description=_ON_UNKNOWN)

    @field_validator("units")
    @classmethod
    def _check_units(cls, value: list[int]) -> list[int]:
        if len(value) > MAX_UNITS or len(set(value)) != len(value):
            raise unexpected(f"at most {MAX_UNITS} units, each once")
        return value


class RetrainRequest(Body):
    """POST /retrain. Any setting of the network or of its training may be added, by its name."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    corpus: str | list[str] = Field(
        "shakespeare", description="the name of a corpus, or several; the end of each is used for validation"
    )
    model: ModelName = Field(
        DEFAULT, description="the name of the model to train, which has checkpoints and a history of its own"
    )
    preset: str = Field("quick", description="a named set of settings; settings given in the body override it")
    promote: Literal["if_better", "always", "never"] = Field(
        "if_better", description="if_better: only if its loss is lower than that of the promoted model on the same text"
    )
    warm_start: bool = Field(False, description="start from the promoted model's weights")

    @field_validator("corpus")
    @classmethod
    def _check_corpus(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and not (1 <= len(value) <= MAX_CORPORA and len(set(value)) == len(value)):
            raise unexpected(f"1 to {MAX_CORPORA} names, each once")
        return value

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora, also if only one is named."""
        return [self.corpus] if isinstance(self.corpus, str) else self.corpus

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the network and of its training, not validated yet."""
        return dict(self.model_extra or {})


class EmptyBody(Body):
    """The body of a request that has no parameters: empty, or {}."""


class ModelBody(Body):
    """The body of a request about the checkpoints of one model."""

    model: ModelName = Field(DEFAULT, description="the name of the model")


class ForkRequest(Body):
    """POST /sessions/{id}/fork."""

    position: int | None = Field(None, ge=1, description="fork the session as it was at this position")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="default: the session's seed")


BodyT = TypeVar("BodyT", bound=Body)


def parse_body(schema: type[BodyT], data: bytes) -> BodyT:
    """Validate the bytes of a body; an empty body is {}.

    Raises:
        MalformedBody: The bytes are not a JSON object.
        BadRequest: A field has a value that is not accepted, or does not exist.
    """
    try:
        return schema.model_validate_json(data or b"{}")
    except ValidationError as e:
        first, *others = (_bad_request(schema, error) for error in e.errors(include_url=False)[:MAX_ERRORS])
    if not isinstance(first, MalformedBody):
        first.more = others
    raise first


def _bad_request(schema: type[Body], error: ErrorDetails) -> BadRequest:
    """Return one of pydantic's errors as ours."""
    field = ".".join(str(part) for part in error["loc"])
    if not field:
        problem = error["msg"] if error["type"] == "json_invalid" else "JSON, but not an object"
        return MalformedBody("body", None, "a JSON object", problem=problem)
    if error["type"] == "extra_forbidden":
        is_nested = len(error["loc"]) > 1
        fields = "the documented ones" if is_nested else ", ".join(schema.model_fields)
        return BadRequest(field, error["input"], f"one of the fields {fields}", problem="no such field")
    if error["type"] == "missing":
        return BadRequest(field, None, "a value", problem="is required")
    return BadRequest(field, error["input"], expected_value(error))


_EXPECTED: Mapping[str, str] = {
    "bool_type": "a boolean, true or false",
    "finite_number": "a finite number",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than": "a value greater than {gt}",
    "greater_than_equal": "a value greater than or equal to {ge}",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "less_than_equal": "a value less than or equal to {le}",
    "list_type": "an array",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "a string that matches the pattern {pattern}",
    "string_too_short": "at least {min_length} character(s)",
    "string_type": "a string",
    "unexpected": "{expected}",
}
"""pydantic's types of errors, in the words of our messages, with the values of the error's context."""


def expected_value(error: ErrorDetails) -> str:
    """Say which values are accepted, from one of pydantic's errors; completes the sentence "expected ..."."""
    template = _EXPECTED.get(error["type"])
    return template.format_map(error.get("ctx", {})) if template is not None else error["msg"]


def check_length(specification: StructuredOutputs) -> None:
    """Refuse a specification of which the JSON is too long.

    Raises:
        PydanticCustomError: It is.
    """
    if specification.is_too_long:
        raise unexpected(f"at most {MAX_JSON_BYTES} bytes of JSON")


def unexpected(expected: str) -> PydanticCustomError:
    """The error of a validator of ours."""
    return PydanticCustomError("unexpected", "expected {expected}", {"expected": expected})
