"""A running generation as server-sent events.

event: start   data: session_id, position, seed, model, reencoded   once, before any text
id: POSITION   data: {"text"}, and "logprobs" if requested          one for each block; the id is the position after it
: ...                                                               a comment, when nothing was generated for a while
event: done    data: as the JSON answer, without its text           the end
event: error   data: {"error": {"code", "message"}}                 or this end: the status was already sent
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.errors import ServiceError
from service.generation.turn import Turn
from service.routes.sse import HEARTBEAT, Heartbeat, encode_event

POLL_INTERVAL_S = 0.25
"""While nothing is generated, the client is checked this often."""


class GenerationEvents:
    """Implements `EventSource`: the server calls `close` however the response ends, also if it never began."""

    def __init__(self, turn: Turn, is_disconnected: Callable[[], bool]) -> None:
        """Take over a turn; it is closed with this object."""
        self._turn = turn
        self._is_disconnected = is_disconnected

    def __iter__(self) -> Iterator[bytes]:
        """Return the encoded events; to be called once."""
        turn, heartbeat = self._turn, Heartbeat()
        yield encode_event(turn.opening(), name="start")
        try:
            for chunk in turn.pieces(POLL_INTERVAL_S):
                if self._is_disconnected():
                    return
                if chunk is not None:
                    logprobs = {"logprobs": chunk.looks} if chunk.looks is not None else {}
                    yield encode_event({"text": chunk.text, **logprobs}, id=chunk.position)
                    heartbeat.sent()
                elif heartbeat.is_due():
                    yield HEARTBEAT
                    heartbeat.sent()
            yield encode_event(turn.finish().as_dict(), name="done")
        except ServiceError as e:
            yield encode_event({"error": e.as_dict()}, name="error")

    def close(self) -> None:
        """Stop generating, and keep the session at what was sent."""
        self._turn.close()
