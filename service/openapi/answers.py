"""The bodies of answers, as the document describes them. Answers are not made from these; tests compare the two."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0)]
TopLogprob = Annotated[list[Any], Field(min_length=3, max_length=3, description="[character, logprob, probability]")]


class Answer(BaseModel):
    """Base of all answers: every field is listed."""

    model_config = ConfigDict(extra="forbid")


class ModelName(Answer):
    """A served model."""

    fingerprint: Fingerprint
    name: str


class ModelAnswer(Answer):
    """What the served model is."""

    id: Fingerprint
    name: str
    corpus: str
    preset: str
    val_loss: float
    val_protocol: str
    created: str
    is_list: bool
    network: dict[str, str | int]
    characters: str


class Usage(Answer):
    """What a generation cost."""

    prompt_chars: Count
    generated_chars: Count
    reused_chars: Count


class CharacterLogprob(Answer):
    """The log-probability of a character; the others only if alternatives are requested."""

    logprob: float
    probability: float = Field(0.0, ge=0, le=1.00001)
    top: list[TopLogprob] = Field(default_factory=list)


class GenerateAnswer(Answer):
    """A generated text."""

    text: str
    logprobs: list[CharacterLogprob] = Field(default_factory=list)
    finish_reason: Literal["length", "stop", "cancelled", "timeout"]
    session_id: str | None
    position: Count
    seed: Count
    model: ModelName
    usage: Usage
    saved: bool
    reencoded: bool
    mask_bits: Annotated[float, Field(ge=0)] | None = None


class TextResult(Answer):
    """One of many texts."""

    index: Count
    text: str
    finish_reason: Literal["length", "stop", "cancelled", "timeout"]
    seed: Count
    generated_chars: Count
    logprobs: list[CharacterLogprob] = Field(default_factory=list)
    mask_bits: Annotated[float, Field(ge=0)] | None = None


class BatchAnswer(Answer):
    """Many texts of one prompt."""

    results: list[TextResult]
    seed: Count
    model: ModelName
    usage: Usage


class GeneratedItem(Answer):
    """An item of a list."""

    text: str
    logprob: Annotated[float, Field(le=0)]
    seen_in_training: bool | None


class ItemsUsage(Answer):
    """Characters of a request for items."""

    prompt_chars: Count
    generated_chars: Count


class ItemsAnswer(Answer):
    """Items of a list, and how their generation ended."""

    items: list[GeneratedItem]
    finish_reason: Literal["complete", "exhausted", "timeout"]
    requested: Count
    generated: Count
    candidates: Count
    rejected: dict[Literal["too_long", "too_short", "duplicate", "seen"], Count]
    seed: Count
    model: ModelName
    usage: ItemsUsage


class GenerateAnswers(RootModel[GenerateAnswer | BatchAnswer | ItemsAnswer]):
    """A generated text; with n above 1, many; with items, those."""


class Rewindable(Answer):
    """Positions to which a session can be set back."""

    model_config = ConfigDict(extra="forbid", serialize_by_alias=True)

    from_: Count = Field(alias="from")
    to: Count


class Turn(Answer):
    """The last turn of a session."""

    status: Literal["length", "stop", "cancelled", "timeout", "running", "interrupted"]
    start_position: Count
    text_before: str
    prompt_chars: Count


class SessionAnswer(Answer):
    """A session."""

    session_id: str
    rewindable: Rewindable
    turn: Turn | None
    position: Count
    seed: Count
    recent_text: str
    model: Fingerprint
    model_name: str


class ForkAnswer(Answer):
    """A new session."""

    session_id: str
    position: Count
    seed: Count


class ScoreAnswer(Answer):
    """The losses of a text."""

    text: str
    bits_per_character: float
    nats_per_character: float
    characters: Annotated[int, Field(ge=1)]
    surprisal: list[float | None]
    logprobs: list[CharacterLogprob | None] = Field(default_factory=list)
    position: Count
    model: ModelName


class TextLosses(Answer):
    """The losses of one of many texts."""

    index: Count
    bits_per_character: float
    nats_per_character: float
    characters: Annotated[int, Field(ge=1)]


class ScoreListAnswer(Answer):
    """The losses of a list of texts, and of all together."""

    results: list[TextLosses]
    bits_per_character: float
    nats_per_character: float
    characters: Annotated[int, Field(ge=1)]
    model: ModelName


class Peak(Answer):
    """The most surprising character of an item; the end of the item is at the position after the last."""

    position: Count
    bits: float | None


class ItemScore(Answer):
    """The surprisal of an item, its end counted; null where it has characters that no item of the model can have."""

    index: Count
    characters: Annotated[int, Field(ge=1)]
    bits: float | None
    bits_per_character: float | None
    peak: Peak
    rank: Annotated[float, Field(ge=0, le=100)] | None
    unknown: str


class ScoreItemsAnswer(Answer):
    """The surprisal of items, and of all together."""

    results: list[ItemScore]
    bits_per_character: float | None
    nats_per_character: float | None
    characters: Count
    model: ModelName


class ScoreAnswers(RootModel[ScoreAnswer | ScoreListAnswer | ScoreItemsAnswer]):
    """The losses of a text, or of a list of texts; with a model of a list, of its items."""


class InspectAnswer(Answer):
    """Gates and memories of units."""

    text: str
    characters: Count
    n_layers: Count
    n_hidden: Count
    layer: Count
    item_starts: list[Count]
    units: list[dict[str, Any]]
    unit_correlations: dict[str, Any]
    map: dict[str, Any] = Field(default_factory=dict)
    model: ModelName


class Corpus(Answer):
    """A training text."""

    name: str
    bytes: Count
    characters: Count
    distinct_characters: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    notes: list[str]
    layout: dict[str, Any]
    layout_source: Literal["declared", "detected"]
    modified_at: float | None


class CorporaAnswer(Answer):
    """All training texts."""

    corpora: list[Corpus]


class SubmittedJob(Answer):
    """A queued training job."""

    job_id: Fingerprint
    state: str
    position: Count | None
    request: dict[str, Any]
    job: str


class JobSummary(Answer):
    """A training job, without the lists that grow while it runs."""

    job_id: Fingerprint
    state: Literal["queued", "running", "finished", "failed", "cancelled"]
    cancelling: bool
    request: dict[str, Any]
    attempt: Count
    position: Count | None
    created_at: float | None
    started_at: float | None
    ended_at: float | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None


class JobAnswer(JobSummary):
    """A training job."""

    validations: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    notes: list[str]
    advice: list[dict[str, Any]]


class JobsAnswer(Answer):
    """All training jobs."""

    jobs: list[JobSummary]


class Checkpoint(BaseModel):
    """A checkpoint, or a file that cannot be read and why."""

    id: Fingerprint | None
    name: str
    promoted: bool
    predecessor: bool


class NamedModel(Answer):
    """A model by its promoted checkpoint; the id is null while none is promoted, or where `error` says why."""

    name: str
    id: Fingerprint | None
    corpus: str | None
    preset: str | None
    val_loss: float | None
    val_protocol: str | None
    created: str | None
    bytes: Count | None
    error: str | None
    loaded: bool
    last_used_at: float | None


class NamedModelAnswer(NamedModel):
    """A model and its checkpoints."""

    models: list[Checkpoint]


class ModelsAnswer(Answer):
    """A page of models by name, the checkpoints of one of them, and the served model."""

    names: list[NamedModel]
    next: str | None
    models: list[Checkpoint]
    serving: ModelName | None


class CheckpointInfo(BaseModel):
    """A checkpoint's description."""

    id: Fingerprint
    name: str


class PromotedAnswer(Answer):
    """The promoted checkpoint."""

    promoted: CheckpointInfo


class HealthAnswer(Answer):
    """The process answers."""

    status: Literal["ok"]


class ReadyAnswer(Answer):
    """The state of the service's parts."""

    status: Literal["ready", "training"]
    model: ModelName | None
    job: str = ""
    stepper: str = ""
    stepper_reason: str = ""
    slots: Count = 0
    in_flight: Count = 0
    session_store: Literal["ok", "unavailable"]
    refused_checkpoint: dict[str, Any] | None
    model_swaps: Count
    model_swaps_refused: Count
    retired_models: Count


class CompletionLogprobs(Answer):
    """Log-probabilities, an item for each character."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Answer):
    """One text."""

    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionUsage(Answer):
    """Characters of the whole request."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: dict[str, Count]


class CompletionAnswer(Answer):
    """A `text_completion` object."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    system_fingerprint: Fingerprint
    choices: list[CompletionChoice]
    usage: CompletionUsage


class OpenAIModel(Answer):
    """A model as the protocol names it."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str


class OpenAIModels(Answer):
    """All models that may be named."""

    object: Literal["list"]
    data: list[OpenAIModel]


class Tokens(Answer):
    """Token ids of a text."""

    tokens: list[Count]
    count: Count
    max_model_len: Count
    token_strs: list[str] = Field(default_factory=list)


class Detokenized(Answer):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(Answer):
    """The tokenizer: a token is a character."""

    tokenizer_class: str
    bos_token: str
    eos_token: str
    pad_token: None
    unk_token: None
    chat_template: None
    vocab_size: Count
    vocabulary: str
    model_max_length: Count


class ErrorBody(BaseModel):
    """What went wrong and what to do; errors about a value add field, value and expected."""

    code: str
    message: str


class ErrorAnswer(Answer):
    """An error."""

    error: ErrorBody


class OpenAIErrorBody(Answer):
    """An error in the form of the OpenAI protocol."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorAnswer(Answer):
    """An error on /v1."""

    error: OpenAIErrorBody
