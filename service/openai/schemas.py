"""The bodies of /v1/completions and of the tokenizer's addresses, as the official clients send them.

Every field may be null, which means its default. Fields of the protocol have its names; ours stand beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, create_model, model_validator

from model.network.penalties import MAX_LOGIT_BIAS
from model.network.sampling import MAX_SEED, SamplingParameter, SamplingParams
from model.structured_outputs.specification import StructuredOutputs
from service.schemas import (
    MAX_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_TEXTS,
    Body,
    OnUnknown,
    StructuredOutputsField,
    check_length,
    one_message,
    parameter_schema,
    unexpected,
)

MAX_PROMPTS = MAX_TEXTS  # prompts x best_of are at most so many, too
MAX_LOGPROBS = 5
DEFAULT_MAX_TOKENS = 200

TokenId = Annotated[int, Field(ge=0)]
TokenKey = Annotated[str, StringConstraints(pattern="^(0|[1-9][0-9]{0,6})$")]
Bias = Annotated[float, Field(ge=-MAX_LOGIT_BIAS, le=MAX_LOGIT_BIAS)]


Prompt = Annotated[
    str
    | Annotated[list[TokenId], Field(max_length=1 << 20)]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[list[TokenId]], Field(min_length=1, max_length=MAX_PROMPTS)]
    | None,
    one_message(f"a string, a list of 1 to {MAX_PROMPTS} strings, token ids, or a list of lists of token ids"),
]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Stop = Annotated[
    StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None,
    one_message(f"a string or a list of at most {MAX_STOP_STRINGS} strings, each of 1 to {MAX_STOP_CHARS} characters"),
]


def _nullable_field(parameter: SamplingParameter) -> Any:
    """The type and the pydantic field of one sampling parameter, which may be null."""

    def check(value: float | None) -> float | None:
        if value is not None and not parameter.accepts(value):
            raise unexpected(parameter.expected)
        return value

    number: Any = Annotated[parameter.type, Field(json_schema_extra=parameter_schema(parameter))]
    field = Field(None, description=f"{parameter.help}; default {parameter.default:g}")
    return Annotated[number | None, AfterValidator(check)], field


if TYPE_CHECKING:

    class _SamplingFields(Body):
        """The sampling parameters as fields; code reads them through CompletionRequest.sampling."""
else:
    _SamplingFields = create_model(
        "CompletionSamplingFields", __base__=Body, **{p.name: _nullable_field(p) for p in SamplingParams.fields()}
    )


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = Field(None, description="send the usage of the whole request in a last chunk")
    include_obfuscation: bool | None = Field(None, description="accepted; nothing is obfuscated")


class JsonSchemaFormat(Body):
    """`response_format.json_schema`."""

    name: str | None = Field(None, description="accepted, and not used")
    description: str | None = Field(None, description="accepted, and not used")
    json_schema: dict[str, Any] = Field(alias="schema", description="a JSON schema")
    strict: bool | None = Field(None, description="accepted; every text is valid")


class ResponseFormat(Body):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="json_object: a flat JSON object; json_schema: JSON of the schema in json_schema"
    )
    json_schema: JsonSchemaFormat | None = Field(None, description="only with type json_schema")

    @model_validator(mode="after")
    def _check_schema(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise unexpected("an object with json_schema if its type is json_schema, else without")
        if self.specification is not None:
            check_length(self.specification)
        return self

    @property
    def specification(self) -> StructuredOutputs | None:
        """What the text must be; None: anything."""
        if self.json_schema is not None:
            return StructuredOutputs("json", self.json_schema.json_schema)
        return StructuredOutputs("json_object", True) if self.type == "json_object" else None


class CompletionRequest(_SamplingFields):
    """POST /v1/completions."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str | None = Field(None, description="an id of GET /v1/models; default: longhand")
    prompt: Prompt = Field(None, description="text or token ids to continue, or a list of them; null begins a new text")
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description=f"generate at most this many characters; default {DEFAULT_MAX_TOKENS}"
    )
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="stop strings are not matched in so many generated characters; default 0"
    )
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES)] | None = Field(
        None, description="what is added to the logits of tokens, -100 to 100 by token id"
    )
    n: Annotated[int, Field(ge=1, le=MAX_TEXTS)] | None = Field(None, description="texts for each prompt; default 1")
    best_of: Annotated[int, Field(ge=1, le=MAX_TEXTS)] | None = Field(
        None, description="generate this many for each prompt and answer with the n most probable; default n"
    )
    echo: bool | None = Field(None, description="begin each text with its prompt")
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="log-probabilities of each character, and of this many most probable ones"
    )
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = Field(
        None, description="the same seed gives the same texts; default: a random one"
    )
    stop: Stop = Field(None, description="stop strings: a text ends before the first of these")
    stream: bool | None = Field(None, description="answer as server-sent events")
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    suffix: None = Field(None, description="must be null: text cannot be inserted")
    user: str | None = Field(None, description="accepted, and not used")
    on_unknown: OnUnknown | None = Field(
        None, description="what to do with characters of a prompt that are not in the vocabulary; default error"
    )
    structured_outputs: StructuredOutputsField | None = Field(
        None, description="the constraint of each text, within max_tokens: regex, choice or json, as for POST /generate"
    )
    response_format: ResponseFormat | None = Field(
        None, description="the constraint of each text, as in the protocol: text, json_object or json_schema"
    )

    @property
    def sampling(self) -> dict[str, int | float]:
        """The sampling parameters that the request sets."""
        values = {p.name: getattr(self, p.name) for p in SamplingParams.fields()}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt: text, or token ids."""
        prompt = self.prompt
        if prompt is None or isinstance(prompt, str):
            return [prompt or ""]
        if not prompt or isinstance(prompt[0], int):
            return [prompt]  # type: ignore[list-item]  # the first decides: a list of ids
        return prompt  # type: ignore[return-value]  # of texts, or of lists of ids

    @property
    def stop_strings(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def seed_63(self) -> int | None:
        """The seed as one of 63 bits: negative seeds, which the protocol allows, wrap around."""
        return None if self.seed is None else self.seed & MAX_SEED


class TokenizeRequest(Body):
    """POST /tokenize."""

    model: str | None = Field(None, description="an id of GET /v1/models; default: longhand")
    prompt: str = Field(description="the text")
    add_special_tokens: bool | None = Field(None, description="accepted; there are no special tokens")
    return_token_strs: bool | None = Field(None, description="return the characters, too")
    on_unknown: OnUnknown | None = Field(
        None, description="what to do with characters that are not in the vocabulary; default error"
    )


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = Field(None, description="an id of GET /v1/models; default: longhand")
    tokens: list[TokenId] = Field(description="token ids")
