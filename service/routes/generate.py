"""POST /generate: a prompt and parameters in, text out, whole or as it is generated."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g, jsonify

from service.errors import BadRequest
from service.generation.batch import BatchChunk
from service.generation.items.plan import check_item_fields
from service.generation.service import GenerationService
from service.inspection.encoded_list import EncodedList
from service.routes.access import count_request
from service.routes.body import idempotency_key, read_body
from service.routes.generation_events import POLL_INTERVAL_S, batch_events, generation_events
from service.routes.item_events import items_response
from service.routes.sse import ClientConnection, event_stream_response
from service.schemas import GenerateRequest


def blueprint(generation: GenerationService) -> Blueprint:
    """Create the route."""
    routes = Blueprint("generate", __name__)

    @routes.post("/generate")
    def generate() -> Response:
        body, key = read_body(GenerateRequest), idempotency_key()
        count_request(body.model, body.session_id)
        client = ClientConnection(is_stream=body.stream)
        if body.items is not None:
            return items_response(generation, body, key, client)
        check_item_fields(body)
        if body.n > 1:
            return _batch(generation, body, key, client)
        before_stream = ClientConnection(is_stream=False)
        running = generation.generate(body, key, g.get("key_id", ""), before_stream.check)
        if body.stream:
            return event_stream_response(generation_events(running), client, running.close)
        try:
            text, logprobs = [], EncodedList()
            for chunk in running.chunks(POLL_INTERVAL_S):
                client.check()
                if chunk is not None:
                    text.append(chunk.text)
                    logprobs.extend(chunk.token_logprobs or [])
            with_logprobs = {"logprobs": logprobs} if running.has_logprobs else {}
            return jsonify({"text": "".join(text), **with_logprobs, **running.finish().as_dict()})
        finally:
            running.close()

    return routes


def _batch(generation: GenerationService, body: GenerateRequest, key: str, client: ClientConnection) -> Response:
    """Answer with many texts, each with its index."""
    if key:
        raise BadRequest("Idempotency-Key", key, "none with n above 1: these texts are not stored; send a seed instead")
    batch = generation.generate_batch(body)
    if body.stream:
        return event_stream_response(batch_events(batch), client, batch.close)
    try:
        texts = [list[str]() for _ in range(body.n)]
        logprobs = [EncodedList() for _ in range(body.n)]
        results: dict[int, dict[str, Any]] = {}
        for part in batch.parts(POLL_INTERVAL_S):
            client.check()
            if isinstance(part, BatchChunk):
                texts[part.index].append(part.chunk.text)
                logprobs[part.index].extend(part.chunk.token_logprobs or [])
            elif part is not None:
                with_logprobs = {"logprobs": logprobs[part.index]} if batch.has_logprobs else {}
                results[part.index] = {**part.as_dict(), "text": "".join(texts[part.index]), **with_logprobs}
        return jsonify({"results": [results[i] for i in range(body.n)], **batch.summary()})
    finally:
        batch.close()
