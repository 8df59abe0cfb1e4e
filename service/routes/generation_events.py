"""A running generation as server-sent events.

event: start   data: session_id, position, seed, model, reencoded   once, before any text
id: POSITION   data: {"text"}, and "logprobs" if requested          one for each block; the id is the position after it
: ...                                                               a comment, when nothing was generated for a while
event: done    data: as the JSON answer, without its text           the end
event: error   data: {"error": {"code", "message"}}                 or this end: the status was already sent

With n above 1:

event: start   data: n, seed, model                                 once
               data: {"index", "text"}, and "logprobs" if requested one for each block of each text
event: result  data: index, finish_reason, seed, generated_chars    the end of one text
event: done    data: seed, model, usage                             the end of all
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.engine.stream import Chunk
from service.generation.batch import BatchChunk, RunningBatch
from service.generation.running import RunningGeneration
from service.routes.sse import encode_event

POLL_INTERVAL_S = 0.25
"""While nothing is generated, the client is checked this often."""


def generation_events(running: RunningGeneration) -> Iterator[bytes | None]:
    """Yield the events of a generation, and None before waiting for more."""
    yield encode_event(running.start_info(), name="start")
    for chunk in running.chunks(POLL_INTERVAL_S):
        yield encode_event(_text(chunk), id=chunk.position) if chunk is not None else None
    yield encode_event(running.finish().as_dict(), name="done")


def batch_events(batch: RunningBatch) -> Iterator[bytes | None]:
    """Yield the events of many texts, and None before waiting for more."""
    yield encode_event(batch.start_info(), name="start")
    for part in batch.parts(POLL_INTERVAL_S):
        if isinstance(part, BatchChunk):
            yield encode_event({"index": part.index, **_text(part.chunk)})
        else:
            yield encode_event(part.as_dict(), name="result") if part is not None else None
    yield encode_event(batch.summary(), name="done")


def _text(chunk: Chunk) -> dict[str, Any]:
    """The text of a chunk, and its log-probabilities if they are requested."""
    logprobs = {"logprobs": chunk.token_logprobs} if chunk.token_logprobs is not None else {}
    return {"text": chunk.text, **logprobs}
