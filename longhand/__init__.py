r"""A client of a Longhand server: texts, streams that survive, sessions, scores, training jobs, models. docs/client.md.

    with longhand.Client("http://127.0.0.1:8000") as client:
        print(client.generate("KING.\n", max_chars=200).text)

It imports neither the service nor torch.
"""

from longhand.async_client import AsyncClient, AsyncItems, AsyncJobProgress, AsyncStream
from longhand.client import Client, Items, JobProgress, Stream
from longhand.errors import (
    APIError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    InvalidRequest,
    InvalidResponse,
    LonghandError,
    NotFound,
    Overloaded,
    ServerError,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from longhand.schemas import (
    Checkpoint,
    Chunk,
    Corpus,
    Fork,
    GenerateOptions,
    Generation,
    Item,
    ItemOptions,
    ItemScore,
    ItemScores,
    ItemsResult,
    Job,
    JobEvent,
    Logprob,
    ModelName,
    Models,
    Score,
    Session,
    StructuredOutputs,
)

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncItems",
    "AsyncJobProgress",
    "AsyncStream",
    "Checkpoint",
    "Chunk",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Corpus",
    "Forbidden",
    "Fork",
    "GenerateOptions",
    "Generation",
    "InvalidRequest",
    "InvalidResponse",
    "Item",
    "ItemOptions",
    "ItemScore",
    "ItemScores",
    "Items",
    "ItemsResult",
    "Job",
    "JobEvent",
    "JobProgress",
    "Logprob",
    "LonghandError",
    "ModelName",
    "Models",
    "NotFound",
    "Overloaded",
    "Score",
    "ServerError",
    "Session",
    "Stream",
    "StructuredOutputs",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
]
