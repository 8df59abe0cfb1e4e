"""Every operation of the API: who may use it, what it takes, what it answers. A test compares this with the routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from pydantic import BaseModel

from model.checkpoints.names import FINGERPRINT, NO_NAME
from model.checkpoints.names import NAME as MODEL_NAME
from model.text.items.layout import DUPLICATES, ITEM_KINDS, LONG_ITEMS, MOST_ITEM_CHARS
from service.jobs.queue import JOB_ID
from service.openai.schemas import CompletionRequest, DetokenizeRequest, TokenizeRequest
from service.openapi import answers
from service.schemas import (
    MAX_TOP_LOGPROBS,
    ForkRequest,
    GenerateRequest,
    InspectRequest,
    ModelBody,
    RetrainRequest,
    ScoreRequest,
)
from service.store.corpora import NAME
from service.store.sessions import SESSION_ID

EVENTS = "text/event-stream"
JSON = "application/json"
TEXT = "text/plain"
BINARY = "application/octet-stream"
HTML = "text/html"


class Guard(Enum):
    """Which key an operation needs, if any are set."""

    PUBLIC = "public"
    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter in the address or a header."""

    name: str
    location: str  # query or header
    schema: dict[str, Any]
    description: str


@dataclass(frozen=True, slots=True)
class Link:
    """An operation that continues with a value of an answer or of its request."""

    operation: str  # its name
    parameter: str  # that takes the value; a field of the body if `in_body`
    value: str  # a runtime expression of OpenAPI
    in_body: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    description: str
    model: type[BaseModel] | None = None  # of a JSON body
    example: Any = None
    other: tuple[str, ...] = ()  # further media types of the body
    headers: dict[str, str] = field(default_factory=dict)  # name -> description
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    method: str
    path: str
    name: str  # operationId
    tag: str
    summary: str
    guard: Guard
    answers: dict[int, Answer]
    errors: tuple[int, ...] = ()  # statuses besides those that every operation of its guard can have
    body: type[BaseModel] | None = None
    example: Any = None  # of the body
    text_body: bool = False
    binary_body: bool = False
    parameters: tuple[Parameter, ...] = ()


_MODEL_NAME_SCHEMA = {"type": "string", "pattern": f"^{MODEL_NAME}$", "not": {"pattern": f"^{NO_NAME}$"}}
PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "session_id": {"type": "string", "pattern": f"^{SESSION_ID}$"},
    "job_id": {"type": "string", "pattern": f"^{JOB_ID}$"},
    "model_id": {"type": "string", "pattern": f"^{FINGERPRINT}$"},
    "model_name": _MODEL_NAME_SCHEMA,
    "name": {"type": "string", "pattern": f"^{NAME}$"},
    "model": {"type": "string", "minLength": 1},
}
_KEY = Parameter(
    "Idempotency-Key", "header", {"type": "string", "pattern": "^([\\x21-\\x7e]{16,128})?$"},
    "a request that is sent again with the same key is done once",
)  # fmt: skip
_LAST_POSITION = Parameter(
    "Last-Event-ID", "header", {"type": "string", "pattern": "^([0-9]{1,18})?$"}, "the position after the last event"
)
_LAST_EVENT = Parameter(
    "Last-Event-ID", "header", {"type": "string", "pattern": "^[0-9]{1,20}(-[0-9]{1,20})?$"}, "the id of the last event"
)
_FROM = Parameter(
    "from", "query", {"type": "string", "pattern": "^([0-9]{1,18})?$"}, "the position, where no header can be sent"
)
_LOGPROBS = Parameter(
    "logprobs", "query", {"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS}, "as for POST /generate"
)
_TURNS_MODEL = Parameter(
    "model",
    "query",
    {"type": "string", "pattern": f"^{MODEL_NAME}$"},
    "the name or id of the model to resume with; default: the one that wrote the turn",
)
_MODEL_REF = Parameter(
    "model", "query", {"type": "string", "pattern": f"^{MODEL_NAME}$"}, "the name or id of a model; default: `default`"
)
_MODEL_NAME = Parameter("model", "query", _MODEL_NAME_SCHEMA, "the name of the checkpoint's model; default: `default`")
_LISTED_MODEL = Parameter("model", "query", _MODEL_NAME_SCHEMA, "whose checkpoints are listed; default: `default`")
_AFTER = Parameter("after", "query", _MODEL_NAME_SCHEMA, "list the names after this one")
_LIMIT = Parameter(
    "limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000}, "the most names of a page; default 100"
)
_NAME = Parameter("name", "query", {"type": "string", "pattern": f"^{NAME}$"}, "the corpus that it would be")
_IF_NONE_MATCH = Parameter("If-None-Match", "header", {"type": "string"}, "* keeps a corpus that exists")
_LAYOUT = (
    Parameter("items", "query", {"enum": list(ITEM_KINDS)}, "whether the corpus is a list, and how its items lie"),
    Parameter(
        "separator",
        "query",
        {"type": "string", "minLength": 1},
        "what lies between two items; \\n, \\t and \\0 are read",
    ),
    Parameter("column", "query", {"type": "string"}, "of a table: the column of the items"),
    Parameter("group_column", "query", {"type": "string"}, "of a table: equal values keep items in one part"),
    Parameter(
        "max_item_chars", "query", {"type": "integer", "minimum": 1, "maximum": MOST_ITEM_CHARS}, "the longest item"
    ),
    Parameter("long_items", "query", {"enum": list(LONG_ITEMS)}, "what is done with longer ones"),
    Parameter("duplicates", "query", {"enum": list(DUPLICATES)}, "whether items that equal one before them count"),
    Parameter("novelty", "query", {"type": "boolean"}, "whether a checkpoint keeps a hash of each training item"),
)
_MODEL = {"fingerprint": "a4a693fb475d134d", "name": "val1.4302-step004200.safetensors"}
_DESCRIBED_MODEL = {
    "id": "a4a693fb475d134d", "name": "val1.4302-step004200.safetensors", "corpus": "shakespeare", "preset": "quick",
    "val_loss": 1.4302, "val_protocol": "stateful", "created": "2026-11-26T10:42:13+00:00", "is_list": False,
    "network": {
        "cell": "lstm", "n_layers": 1, "n_hidden": 320, "n_embed": 64, "vocab_size": 84, "n_parameters": 526420
    }, "characters": "\n abc",
}  # fmt: skip
_SESSION = "dzjLzNEeyH36OrPzHc-_3FUiORGdrKNv"
_GENERATED = {
    "text": " for ever", "finish_reason": "length", "session_id": _SESSION, "position": 13, "seed": 7, "model": _MODEL,
    "usage": {"prompt_chars": 4, "generated_chars": 9, "reused_chars": 0}, "saved": True, "reencoded": False,
}  # fmt: skip
_JOB: dict[str, Any] = {
    "job_id": "1ec48395b55854b2", "state": "queued", "cancelling": False, "request": {"corpus": "mine"}, "attempt": 0,
    "position": 0, "created_at": 1795661943.1, "started_at": None, "ended_at": None, "progress": None, "result": None,
    "error": None,
}  # fmt: skip
_WHOLE_JOB = {**_JOB, "validations": [], "samples": [], "notes": [], "advice": []}
_CORPUS = {
    "name": "mine", "bytes": 540, "characters": 540, "distinct_characters": 6, "sha256": "0" * 64, "notes": [],
    "layout": {"items": "text"}, "layout_source": "detected", "modified_at": 1795661942.8,
}  # fmt: skip
_OPENAI_MODEL = {"id": "longhand", "object": "model", "created": 1795661937, "owned_by": "longhand"}
_COMPLETION = {
    "id": "cmpl-1", "object": "text_completion", "created": 1795661937, "model": "longhand",
    "system_fingerprint": "a4a693fb475d134d",
    "choices": [{"index": 0, "text": " for ever", "logprobs": None, "finish_reason": "length"}],
    "usage": {
        "prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 0}
    },
}  # fmt: skip
_READY = {
    "status": "ready", "model": _MODEL, "stepper": "cpu-i8",
    "stepper_reason": "native, int8", "slots": 64, "in_flight": 3, "session_store": "ok",
    "refused_checkpoint": None, "model_swaps": 1, "model_swaps_refused": 0, "retired_models": 0,
}  # fmt: skip
_NAMED: dict[str, Any] = {
    "name": "default", "id": "a4a693fb475d134d", "corpus": "shakespeare", "preset": "quick", "val_loss": 1.4302,
    "val_protocol": "stateful", "created": "2026-11-26T10:42:13+00:00", "bytes": 2_117_528, "error": None,
    "loaded": True, "last_used_at": None,
}  # fmt: skip
_STORED = {"id": "a4a693fb475d134d", "name": _MODEL["name"]}
_PROMOTED = {"promoted": {"id": "a4a693fb475d134d", "name": _MODEL["name"]}}
_SCORED = {
    "text": "so", "bits_per_character": 4.9, "nats_per_character": 3.4, "characters": 2, "surprisal": [4.8, 5.0],
    "position": 0, "model": _MODEL,
}  # fmt: skip
_INSPECTED = {
    "text": "so", "characters": 2, "n_layers": 2, "n_hidden": 24, "layer": 0, "item_starts": [], "units": [],
    "unit_correlations": {}, "model": _MODEL,
}  # fmt: skip
_INFO = {
    "tokenizer_class": "CharacterTokenizer", "bos_token": "\n", "eos_token": "\n", "pad_token": None,
    "unk_token": None, "chat_template": None, "vocab_size": 3, "vocabulary": "\nab", "model_max_length": 50000,
}  # fmt: skip
_PAGE = Answer("the page", other=(HTML,))
_SESSION_LINKS = (
    *(
        Link(name, "session_id", "$response.body#/session_id")
        for name in ("get_session", "resume_stream", "fork_session", "delete_session")
    ),
    Link("generate", "session_id", "$response.body#/session_id", in_body=True),
)
_JOB_LINKS = tuple(Link(name, "job_id", "$response.body#/job_id") for name in ("get_job", "cancel_job", "follow_job"))
_CORPUS_LINKS = (
    Link("get_corpus", "name", "$request.path.name"),
    Link("delete_corpus", "name", "$request.path.name"),
    Link("retrain", "corpus", "$request.path.name", in_body=True),
)
_MODEL_LINKS = (
    Link("promote_model", "model_id", "$response.body#/id"),
    Link("download_model", "model_id", "$response.body#/id"),
)
_C, _O, _P = Guard.CLIENT, Guard.OPERATOR, Guard.PUBLIC

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/generate", "generate", "Generate", "Generate text, in a new session or as the continuation of one",
        _C, {200: Answer(
            "the text or texts, or their events", answers.GenerateAnswers, _GENERATED, (EVENTS,), links=_SESSION_LINKS
        )},
        (400, 404, 409, 413, 415, 422, 503, 504), GenerateRequest,
        {"prompt": "once", "max_chars": 9, "seed": 7}, parameters=(_KEY,),
    ),
    Operation(
        "GET", "/sessions/{session_id}", "get_session", "Generate", "What a session holds", _C,
        {200: Answer("the session", answers.SessionAnswer, {
            "session_id": _SESSION, "rewindable": {"from": 0, "to": 13}, "position": 13, "seed": 7,
            "turn": {"status": "length", "start_position": 4, "text_before": "once", "prompt_chars": 4},
            "recent_text": "once for ever",
            "model": "a4a693fb475d134d", "model_name": "default",
        })}, (404, 409, 422, 503),
    ),
    Operation(
        "DELETE", "/sessions/{session_id}", "delete_session", "Generate", "Delete a session", _C,
        {204: Answer("deleted")}, (404, 422, 503),
    ),
    Operation(
        "GET", "/sessions/{session_id}/stream", "resume_stream", "Generate",
        "The last turn's stream again, from a position", _C,
        {200: Answer("the events", other=(EVENTS,)), 204: Answer("the client has all of a complete turn")},
        (404, 409, 422, 503), parameters=(_LAST_POSITION, _FROM, _LOGPROBS, _TURNS_MODEL),
    ),
    Operation(
        "POST", "/sessions/{session_id}/fork", "fork_session", "Generate", "Copy a session", _C,
        {201: Answer("the new session", answers.ForkAnswer, {
            "session_id": _SESSION, "position": 13, "seed": 7
        }, links=_SESSION_LINKS)},
        (400, 404, 409, 413, 415, 422, 503, 504), ForkRequest, {},
    ),
    Operation(
        "GET", "/model", "describe_model", "Generate", "What a model is", _C,
        {200: Answer("its description", answers.ModelAnswer, _DESCRIBED_MODEL)}, (404, 409, 422, 503),
        parameters=(_MODEL_REF,),
    ),
    Operation(
        "POST", "/score", "score", "Score and inspect", "The loss of a text", _C,
        {200: Answer("the losses", answers.ScoreAnswers, _SCORED)}, (400, 404, 409, 413, 415, 422, 503, 504),
        ScoreRequest, {"text": "so"},
    ),
    Operation(
        "POST", "/inspect", "inspect", "Score and inspect", "The network's gates while it reads a text", _C,
        {200: Answer("the gates", answers.InspectAnswer, _INSPECTED)}, (400, 404, 409, 413, 415, 422, 503),
        InspectRequest, {"text": "so"},
    ),
    Operation(
        "POST", "/v1/completions", "create_completion", "OpenAI", "Complete prompts, as OpenAI's clients ask for it",
        _C, {200: Answer("the completion, or its events", answers.CompletionAnswer, _COMPLETION, (EVENTS,))},
        (400, 404, 413, 415, 503, 504), CompletionRequest, {"model": "longhand", "prompt": "once", "max_tokens": 9},
    ),
    Operation(
        "GET", "/v1/models", "list_openai_models", "OpenAI", "The models as the protocol names them", _C,
        {200: Answer("the names", answers.OpenAIModels, {"object": "list", "data": [_OPENAI_MODEL]})},
    ),
    Operation(
        "GET", "/v1/models/{model}", "get_openai_model", "OpenAI", "One of them", _C,
        {200: Answer("the model", answers.OpenAIModel, _OPENAI_MODEL)}, (404, 503),
    ),
    Operation(
        "POST", "/tokenize", "tokenize", "OpenAI", "Text to token ids", _C,
        {200: Answer("the ids", answers.Tokens, {"tokens": [1, 2], "count": 2, "max_model_len": 50000})},
        (400, 404, 413, 415, 422, 503), TokenizeRequest, {"prompt": "ab"},
    ),
    Operation(
        "POST", "/detokenize", "detokenize", "OpenAI", "Token ids to text", _C,
        {200: Answer("the text", answers.Detokenized, {"prompt": "ab"})},
        (400, 404, 413, 415, 422, 503), DetokenizeRequest, {"tokens": [1, 2]},
    ),
    Operation(
        "GET", "/tokenizer_info", "tokenizer_info", "OpenAI", "The tokenizer", _C,
        {200: Answer("its description", answers.TokenizerInfo, _INFO)}, (404, 409, 422, 503), parameters=(_MODEL_REF,),
    ),
    Operation(
        "POST", "/retrain", "retrain", "Train", "Queue a training job", _O,
        {202: Answer("the queued job", answers.SubmittedJob, {
            "job_id": "1ec48395b55854b2", "state": "queued", "position": 0, "request": {"corpus": "mine"},
            "job": "/jobs/1ec48395b55854b2",
        }, headers={"Location": "the job's address"}, links=_JOB_LINKS)},
        (400, 404, 409, 413, 415, 422, 503, 507), RetrainRequest, {"corpus": "mine", "minutes": 3}, parameters=(_KEY,),
    ),
    Operation(
        "GET", "/jobs", "list_jobs", "Train", "All training jobs, the latest first", _O,
        {200: Answer("the jobs", answers.JobsAnswer, {"jobs": [_JOB]})}, (503,),
    ),
    Operation(
        "GET", "/jobs/{job_id}", "get_job", "Train", "A training job", _O,
        {200: Answer("the job", answers.JobAnswer, _WHOLE_JOB)}, (404, 409, 422, 503),
    ),
    Operation(
        "DELETE", "/jobs/{job_id}", "cancel_job", "Train", "Cancel a training job", _O,
        {202: Answer("the job", answers.JobAnswer, _WHOLE_JOB)}, (404, 409, 422, 503),
    ),
    Operation(
        "GET", "/jobs/{job_id}/events", "follow_job", "Train", "A job's progress as it happens", _O,
        {200: Answer("the events", other=(EVENTS,)), 204: Answer("nothing is left to send")},
        (404, 409, 422, 503), parameters=(_LAST_EVENT,),
    ),
    Operation(
        "GET", "/corpora", "list_corpora", "Train", "All training texts", _O,
        {200: Answer("the texts", answers.CorporaAnswer, {"corpora": [_CORPUS]})}, (503,),
    ),
    Operation(
        "PUT", "/corpora/{name}", "put_corpus", "Train", "Store a training text", _O,
        {
            200: Answer("replaced", answers.Corpus, _CORPUS, (), {"Location": "its address"}, _CORPUS_LINKS),
            201: Answer("stored", answers.Corpus, _CORPUS, (), {"Location": "its address"}, _CORPUS_LINKS),
        }, (400, 409, 413, 415, 422, 503, 507), text_body=True, parameters=(_IF_NONE_MATCH, *_LAYOUT),
    ),
    Operation(
        "POST", "/preview", "preview_corpus", "Train", "What a text would be, unstored",
        _O, {200: Answer("the statistics", answers.Corpus, _CORPUS)}, (400, 413, 415, 422, 503, 507), text_body=True,
        parameters=(_NAME, *_LAYOUT),
    ),
    Operation(
        "GET", "/corpora/{name}", "get_corpus", "Train", "A training text's statistics", _O,
        {200: Answer("the statistics", answers.Corpus, _CORPUS)}, (404, 422, 503),
    ),
    Operation(
        "DELETE", "/corpora/{name}", "delete_corpus", "Train", "Delete a training text", _O, {204: Answer("deleted")},
        (404, 409, 422, 503),
    ),
    Operation(
        "GET", "/models", "list_models", "Models", "The models by name, the checkpoints of one, and the served model",
        _O, {200: Answer("the models", answers.ModelsAnswer, {
            "names": [_NAMED], "next": None, "models": [], "serving": _MODEL
        })}, (404, 409, 422), parameters=(_AFTER, _LIMIT, _LISTED_MODEL),
    ),
    Operation(
        "GET", "/models/{model_name}", "get_model", "Models", "A model and its checkpoints", _O,
        {200: Answer("the model", answers.NamedModelAnswer, {**_NAMED, "models": []})}, (404, 409, 422),
    ),
    Operation(
        "PUT", "/models/{model_name}", "upload_into_model", "Models", "Store a model's checkpoint, unserved", _O,
        {
            200: Answer("it was there", answers.CheckpointInfo, _STORED, links=_MODEL_LINKS),
            201: Answer("stored", answers.CheckpointInfo, _STORED, links=_MODEL_LINKS),
        }, (400, 413, 415, 422, 503, 507), binary_body=True,
    ),
    Operation(
        "DELETE", "/models/{model_name}", "delete_named_model", "Models", "Delete a model with all its checkpoints", _O,
        {204: Answer("deleted")}, (404, 409, 422, 503),
    ),
    Operation(
        "GET", "/models/{model_name}/checkpoint", "download_promoted", "Models", "The promoted checkpoint", _O,
        {200: Answer("the file", other=(BINARY,))}, (404, 409, 422),
    ),
    Operation(
        "POST", "/models/{model_id}/promote", "promote_model", "Models", "Serve a checkpoint", _O,
        {200: Answer("the promoted checkpoint", answers.PromotedAnswer, _PROMOTED)},
        (400, 404, 409, 413, 415, 422, 503), ModelBody, {},
    ),
    Operation(
        "GET", "/models/{model_id}/file", "download_model", "Models", "A checkpoint as a file", _O,
        {200: Answer("the file", other=(BINARY,))}, (404, 422),
    ),
    Operation(
        "GET", "/models/{model_id}/page", "export_page", "Models", "A page that writes with a model by itself", _O,
        {200: Answer("the page, as a file to download", other=(HTML,))}, (404, 409, 422),
    ),
    Operation(
        "GET", "/models/{model_id}/report", "get_report", "Models", "What a model learned and memorized", _O,
        {200: Answer("the report", other=(HTML,))}, (404, 422, 503),
    ),
    Operation(
        "PUT", "/models/{model_id}/file", "upload_model", "Models", "Store a checkpoint, without serving it", _O,
        {
            200: Answer("it was there", answers.CheckpointInfo, _STORED, links=_MODEL_LINKS),
            201: Answer("stored", answers.CheckpointInfo, _STORED, links=_MODEL_LINKS),
        }, (400, 413, 415, 422, 503, 507), binary_body=True, parameters=(_MODEL_NAME,),
    ),
    Operation(
        "DELETE", "/models/{model_id}/file", "delete_model", "Models", "Delete a checkpoint", _O,
        {204: Answer("deleted")}, (404, 409, 422, 503), parameters=(_MODEL_NAME,),
    ),
    Operation(
        "POST", "/models/rollback", "roll_back", "Models", "Undo the last promotion", _O,
        {200: Answer("the promoted checkpoint", answers.PromotedAnswer, _PROMOTED)}, 
        (400, 404, 409, 413, 415, 422, 503), ModelBody, {},
    ),
    Operation(
        "GET", "/healthz", "health", "Operations", "Whether the process answers", _P,
        {200: Answer("it does", answers.HealthAnswer, {"status": "ok"})},
    ),
    Operation(
        "GET", "/readyz", "readiness", "Operations", "Whether text can be generated, and the state of the parts", _P,
        {200: Answer("it can", answers.ReadyAnswer, _READY)}, (503,),
    ),
    Operation(
        "GET", "/metrics", "metrics", "Operations", "Metrics for Prometheus", _P,
        {200: Answer("the metrics", other=(TEXT, "application/openmetrics-text"))},
    ),
    Operation(
        "GET", "/openapi.json", "openapi", "Operations", "This document", _P,
        {200: Answer("the document", other=(JSON,))},
    ),
    Operation("GET", "/docs", "docs", "Pages", "This document as a page", _P, {200: _PAGE}),
    Operation("GET", "/", "page", "Pages", "The page", _P, {200: _PAGE}),
    Operation(
        "GET", "/page/{file}", "page_file", "Pages", "A file of the page", _P,
        {200: Answer("the file", other=("text/css", "text/javascript", "image/svg+xml", HTML))}, (404,),
    ),
)  # fmt: skip
