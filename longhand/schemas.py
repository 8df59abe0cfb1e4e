"""The parameters of requests, and the answers. docs/api.md describes every field.

Answers keep fields that this version does not know (`model_extra`), so that a newer server can be used.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field


class _GenerateOptions(TypedDict, total=False):
    """The parameters of POST /generate for texts and for items. One that is None is not sent."""

    min_chars: int
    max_chars: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window: int
    logit_bias: dict[str, float]
    seed: int | None
    model: str | None
    timeout_s: float | None
    on_unknown: Literal["error", "skip"]


class StructuredOutputs(TypedDict, total=False):
    """What a generated text must be: exactly one of these. docs/structured-outputs.md describes them."""

    regex: str
    choice: list[str]
    json: dict[str, Any]
    json_object: Literal[True]


class GenerateOptions(_GenerateOptions, total=False):
    """The parameters of POST /generate beside `prompt`."""

    session_id: str | None
    stop: list[str]
    position: int | None
    on_new_model: Literal["reencode", "conflict"]
    logprobs: int | None
    structured_outputs: StructuredOutputs | None


class ItemOptions(_GenerateOptions, total=False):
    """The parameters of POST /generate for items, beside `items` and `prompt`."""

    unique: bool
    novel: bool


class LayoutOptions(TypedDict, total=False):
    """How the items of a list lie in a corpus: the query of PUT /corpora/{name}. One that is None is not sent."""

    items: Literal["auto", "text", "lines", "paragraphs", "separator", "csv", "tsv", "jsonl"]
    separator: str
    column: str
    group_column: str
    max_item_chars: int
    long_items: Literal["refuse", "cut", "skip"]
    duplicates: Literal["keep", "drop"]
    novelty: bool


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class ModelName(Answer):
    """The model that answered."""

    fingerprint: str
    name: str


class Logprob(Answer):
    """The log-probability of one character; with logprobs=0 nothing else is known of it.

    `top` has the character, log-probability and probability of the most probable ones.
    """

    logprob: float
    probability: float | None = None
    top: list[tuple[str, float, float]] = Field(default_factory=list)


class StreamStart(Answer):
    """A stream's first event."""

    session_id: str | None
    position: int
    seed: int
    model: ModelName
    reencoded: bool = False


class Chunk(Answer):
    """New text of a stream; `position` is that of the session after it."""

    text: str
    position: int
    logprobs: list[Logprob] | None = None


class Usage(Answer):
    """Characters of one turn."""

    prompt_chars: int
    generated_chars: int
    reused_chars: int


class Generation(Answer):
    """A generated text, and how it ended. Of a stream that was resumed with `resume`, the part from there on."""

    text: str
    finish_reason: str
    session_id: str | None
    position: int
    seed: int
    model: ModelName
    usage: Usage
    saved: bool
    reencoded: bool = False
    logprobs: list[Logprob] | None = None
    mask_bits: float | None = None


class ItemsStart(Answer):
    """The first event of a stream of items."""

    items: int
    seed: int
    model: ModelName


class Item(Answer):
    """An item of a list; `logprob` is natural, of the whole item with its end. None: the model does not know."""

    text: str
    logprob: float
    seen_in_training: bool | None


class ItemsResult(Answer):
    """How the generation of items ended: complete, exhausted (there are no more such items) or timeout."""

    finish_reason: str
    requested: int
    generated: int
    candidates: int
    rejected: dict[str, int]
    seed: int
    model: ModelName


class Turn(Answer):
    """A session's last turn."""

    status: str
    start_position: int
    text_before: str
    prompt_chars: int = 0


class PositionRange(Answer):
    """The positions that `position` and fork accept."""

    start: int = Field(alias="from")
    end: int = Field(alias="to")


class Session(Answer):
    """What a session holds."""

    session_id: str
    position: int
    seed: int
    model: str
    recent_text: str
    rewindable: PositionRange
    turn: Turn | None = None


class Fork(Answer):
    """A new session that continues on its own."""

    session_id: str
    position: int
    seed: int


class Score(Answer):
    """The loss of a text; `surprisal` in bits for each character, None for one that was skipped."""

    text: str
    bits_per_character: float
    nats_per_character: float
    characters: int
    position: int
    surprisal: list[float | None]
    model: ModelName
    logprobs: list[Logprob | None] | None = None


class Peak(Answer):
    """The most surprising character of an item; the end of the item is at the position after the last."""

    position: int
    bits: float | None


class ItemScore(Answer):
    """The surprisal of an item, its end counted.

    `rank` is the percentage of the validation items that are less surprising. The figures are None where the item has
    characters that no item of the model can have, which are `unknown`.
    """

    index: int
    characters: int
    bits: float | None
    bits_per_character: float | None
    peak: Peak
    rank: float | None
    unknown: str


class ItemScores(Answer):
    """The surprisal of items in their order, and of all together."""

    results: list[ItemScore]
    bits_per_character: float | None
    nats_per_character: float | None
    characters: int
    model: ModelName


class Job(Answer):
    """A training job."""

    job_id: str
    state: Literal["queued", "running", "finished", "failed", "cancelled"]
    request: dict[str, Any]
    position: int | None = None
    attempt: int = 0
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job is neither queued nor running."""
        return self.state not in ("queued", "running")


class JobEvent(Answer):
    """Progress of a job. `name` is progress, validation, sample, promoted or note; `data` is as in docs/api.md."""

    name: str
    data: dict[str, Any]


class Checkpoint(Answer):
    """A trained model; `error` instead of the figures and no id if its file cannot be read."""

    id: str | None
    name: str
    error: str | None = None
    val_loss: float | None = None
    train_loss: float | None = None
    step: int | None = None
    network: dict[str, Any] = Field(default_factory=dict)
    promoted: bool = False


class ModelSummary(Answer):
    """A model by its name and promoted checkpoint; no id while none is promoted, or where `error` says why."""

    name: str
    id: str | None
    val_loss: float | None = None
    bytes: int | None = None
    error: str | None = None
    loaded: bool = False
    last_used_at: float | None = None


class NamedModel(ModelSummary):
    """A model and its checkpoints, the newest first."""

    models: list[Checkpoint]


class Models(Answer):
    """A page of names, the checkpoints of one model, the newest first, and the default model's that answers now."""

    models: list[Checkpoint]
    names: list[ModelSummary] = Field(default_factory=list)
    next: str | None = None
    serving: ModelName | None = None


class Corpus(Answer):
    """A text to train on; `error` instead of the figures if it cannot be read."""

    name: str
    bytes: int | None = None
    characters: int | None = None
    distinct_characters: int | None = None
    sha256: str | None = None
    notes: list[str] = Field(default_factory=list)
    layout: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
