"""What crosses HTTP, and how a bad body is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from model.network.sampling import MAX_SEED, SamplingParams
from service.errors import BadRequest, MalformedBody
from service.store.sessions import SESSION_ID

SessionId = Annotated[str, StringConstraints(pattern=f"^{SESSION_ID}$")]
MAX_STOPS, MAX_STOP_CHARS = 16, 256
MAX_CORPORA = 64
MAX_TOP = 10
TopN = Annotated[int, Field(ge=0, le=MAX_TOP)]
MAX_UNITS = 16


class Body(BaseModel):
    """Strict: no unknown field, no string for a number, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class GenerateRequest(Body):
    """POST /generate."""

    prompt: str = Field("", description="text to go on from; read after what the session already holds")
    session_id: SessionId | None = Field(
        None, description="goes on where this session is; without it, a new one is opened"
    )
    max_chars: int = Field(200, ge=0, description="characters to write at most; 0 only reads the prompt")
    temperature: float = Field(1.0, ge=0, le=100, description="0 is greedy, 1 the model's own distribution")
    top_k: int = Field(0, ge=0, le=65536, description="keep the k most probable characters; 0 keeps all")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the most probable characters that hold this much")
    min_p: float = Field(0.0, ge=0, le=1, description="drop what is less probable than this times the most probable")
    stop: list[str] = Field(default_factory=list, description="the text ends before the first of these")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="without it: the session's, or a random one")
    position: int | None = Field(None, ge=0, description="put the session back to this position first")
    on_new_model: Literal["reencode", "conflict"] = Field(
        "reencode", description="for a session of a model that is not served any more: read the end of its text, or 409"
    )
    timeout_s: float | None = Field(None, gt=0, le=86400, description="end the text where it is after so many seconds")
    stream: bool = Field(False, description="answer as server-sent events, a block at a time")
    on_unknown: Literal["error", "skip"] = Field("error", description="for characters that the model has never seen")
    logprobs: TopN | None = Field(
        None, description="tell each character's log-probability, and the so many most probable ones with it"
    )

    @field_validator("temperature")
    @classmethod
    def _not_tiny(cls, value: float) -> float:
        if 0 < value < 0.01:
            raise ValueError("expected 0 (greedy) or 0.01 to 100")
        return value

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: list[str]) -> list[str]:
        if len(value) > MAX_STOPS or any(not 1 <= len(s) <= MAX_STOP_CHARS for s in value):
            raise ValueError(f"expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
        return value

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, self.min_p)


class ScoreRequest(Body):
    """POST /score."""

    text: str = Field(min_length=1, description="what is to be scored")
    session_id: SessionId | None = Field(
        None, description="read as what follows in this session, which stays as it is; without it, as a new text"
    )
    logprobs: TopN | None = Field(None, description="as for POST /generate, at temperature 1")
    on_unknown: Literal["error", "skip"] = Field("error", description="for characters that the model has never seen")


class InspectRequest(Body):
    """POST /inspect."""

    text: str = Field(min_length=1, description="what is to be read, as a new text")
    layer: int = Field(0, ge=0, description="which of the network's layers, the lowest is 0")
    units: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list, description="hidden units whose four gates, c and h are told by character"
    )
    map: Literal["i", "f", "g", "o", "c", "h"] | None = Field(
        None, description="tell this one of all units by character; c as tanh(c)"
    )
    on_unknown: Literal["error", "skip"] = Field("error", description="for characters that the model has never seen")

    @field_validator("units")
    @classmethod
    def _few(cls, value: list[int]) -> list[int]:
        if len(value) > MAX_UNITS or len(set(value)) != len(value):
            raise ValueError(f"expected at most {MAX_UNITS} units, each once")
        return value


class RetrainRequest(Body):
    """POST /retrain. Beside these, any setting of the network or of its training, by its name."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    corpus: str | list[str] = Field(
        "shakespeare", description="one text or several, by name; the end of each validates"
    )
    preset: str = Field("quick", description="a starting point; any setting given beside it overrides it")
    promote: Literal["if_better", "always", "never"] = Field(
        "if_better", description="if_better: only when it beats the promoted model on the same validation text"
    )
    warm_start: bool = Field(False, description="begin with the promoted model's weights")

    @field_validator("corpus")
    @classmethod
    def _corpora(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and not (1 <= len(value) <= MAX_CORPORA and len(set(value)) == len(value)):
            raise ValueError(f"expected 1 to {MAX_CORPORA} names, each once")
        return value

    @property
    def corpora(self) -> list[str]:
        return [self.corpus] if isinstance(self.corpus, str) else self.corpus

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Nothing(Body):
    """The body of a request that says all in its path: empty, or {}."""


class ForkRequest(Body):
    """POST /sessions/{id}/fork."""

    position: int | None = Field(None, ge=1, description="fork the session as it was here; without it, as it is")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="another seed than the session's")


B = TypeVar("B", bound=Body)


def parse(kind: type[B], data: bytes) -> B:
    """A body -> its schema. Raised: MalformedBody, or BadRequest naming field, value and what was expected."""
    try:
        return kind.model_validate_json(data or b"{}")
    except ValidationError as e:
        wrong = e.errors(include_url=False, include_context=False)
    first = wrong[0]
    if first["type"] == "json_invalid":
        raise MalformedBody(f"the body is not JSON: {first['msg']}")
    field = ".".join(str(part) for part in first["loc"])
    if not field:
        raise MalformedBody(f"the body is JSON but no object: {first['msg']}")
    raise BadRequest(
        f"{field}: got {_short(first['input'])}, expected: {_expected(kind, first)}",
        field=field,
        value=_short(first["input"]),
        expected=_expected(kind, first),
    )


def _expected(kind: type[Body], error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"no such field; known: {', '.join(kind.model_fields)}"
    return str(error["msg"]).removeprefix("Value error, expected ").removeprefix("Input should be ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
