"""POST /generate with `items`: whole items of a list, together or as server-sent events.

event: start   data: items, seed, model                             once
event: item    data: {"index", "text", "logprob", "seen_in_training"}   one for each item
: ...                                                               a comment, when none was generated for a while
event: done    data: finish_reason, requested, generated, candidates, rejected, seed, model, usage
event: error   data: {"error": {"code", "message"}}                 or this end: the status was already sent
"""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response, jsonify

from service.errors import BadRequest
from service.generation.items.running import RunningItems
from service.generation.service import GenerationService
from service.routes.generation_events import POLL_INTERVAL_S
from service.routes.sse import ClientConnection, encode_event, encode_rows, event_stream_response
from service.schemas import GenerateRequest


def items_response(
    generation: GenerationService, body: GenerateRequest, key: str, client: ClientConnection
) -> Response:
    """Answer a request for items.

    Raises:
        BadRequest: A value cannot be used.
        ServiceError: The items cannot be generated.
    """
    if key:
        raise BadRequest("Idempotency-Key", key, "none with items, which are not stored; send a seed instead")
    running = generation.generate_items(body)
    if body.stream:
        return event_stream_response(_item_events(running), client, running.close)
    try:
        items = []
        for more in running.items(POLL_INTERVAL_S):
            client.check()
            items += [item.as_dict() for item in more]
        return jsonify({"items": items, **running.summary()})
    finally:
        running.close()


def _item_events(running: RunningItems) -> Iterator[bytes | None]:
    """Yield the events of items, and None before waiting for more."""
    yield encode_event(running.start_info(), name="start")
    n_sent = 0
    for more in running.items(POLL_INTERVAL_S):  # one write for all that are there: a write costs more
        columns = {
            "index": range(n_sent, n_sent + len(more)),
            "text": more.texts,
            "logprob": more.logprobs,
            "seen_in_training": more.seen_in_training,
        }
        n_sent += len(more)
        yield encode_rows(columns, name="item") or None
    yield encode_event(running.summary(), name="done")
