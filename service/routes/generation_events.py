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

from service.errors import ServiceError
from service.generation.batch import BatchChunk, RunningBatch
from service.generation.stream import RunningGeneration
from service.routes.sse import HEARTBEAT, ClientConnection, Heartbeat, encode_event

POLL_INTERVAL_S = 0.25
"""While nothing is generated, the client is checked this often."""


class GenerationEvents:
    """Implements `EventSource`: the server calls `close` however the response ends, also if it never began."""

    def __init__(self, running: RunningGeneration, client: ClientConnection) -> None:
        """Take over a generation; it is closed with this object."""
        self._running = running
        self._client = client

    def __iter__(self) -> Iterator[bytes]:
        """Return the encoded events; to be called once."""
        running, heartbeat = self._running, Heartbeat()
        yield encode_event(running.start_info(), name="start")
        try:
            for chunk in running.chunks(POLL_INTERVAL_S):
                if self._client.has_left():
                    return
                if self._client.should_probe():
                    yield HEARTBEAT
                if chunk is not None:
                    logprobs = {"logprobs": chunk.token_logprobs} if chunk.token_logprobs is not None else {}
                    yield encode_event({"text": chunk.text, **logprobs}, id=chunk.position)
                    heartbeat.sent()
                elif heartbeat.is_due():
                    yield HEARTBEAT
                    heartbeat.sent()
            yield encode_event(running.finish().as_dict(), name="done")
        except ServiceError as e:
            yield encode_event({"error": e.as_dict()}, name="error")

    def close(self) -> None:
        """Stop generating, and keep the session at what was sent."""
        self._running.close()


class BatchEvents:
    """Implements `EventSource` for many texts."""

    def __init__(self, batch: RunningBatch, client: ClientConnection) -> None:
        """Take over a batch; it is closed with this object."""
        self._batch = batch
        self._client = client

    def __iter__(self) -> Iterator[bytes]:
        """Return the encoded events; to be called once."""
        batch, heartbeat = self._batch, Heartbeat()
        yield encode_event(batch.start_info(), name="start")
        try:
            for part in batch.parts(POLL_INTERVAL_S):
                if self._client.has_left():
                    return
                if self._client.should_probe():
                    yield HEARTBEAT
                if isinstance(part, BatchChunk):
                    chunk = part.chunk
                    logprobs = {"logprobs": chunk.token_logprobs} if chunk.token_logprobs is not None else {}
                    yield encode_event({"index": part.index, "text": chunk.text, **logprobs})
                    heartbeat.sent()
                elif part is not None:
                    yield encode_event(part.as_dict(), name="result")
                    heartbeat.sent()
                elif heartbeat.is_due():
                    yield HEARTBEAT
                    heartbeat.sent()
            yield encode_event(batch.summary(), name="done")
        except ServiceError as e:
            yield encode_event({"error": e.as_dict()}, name="error")

    def close(self) -> None:
        """Stop generating."""
        self._batch.close()
