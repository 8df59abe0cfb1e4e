"""/v1: the OpenAI completions protocol. /tokenize, /detokenize, /tokenizer_info: the tokenizer for harnesses."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response, g, jsonify

from model.checkpoints.names import OPENAI_DEFAULT
from service.access.limits import RateLimiter
from service.errors import ServiceError
from service.openai.answers import ChunkEncoder, WholeCompletion
from service.openai.completions import CompletionService, RunningCompletion
from service.openai.errors import error_body
from service.openai.models import ModelList
from service.openai.schemas import CompletionRequest, DetokenizeRequest, TokenizeRequest
from service.openai.tokenizer import Tokenizer
from service.routes.access import count_request
from service.routes.arguments import model_argument
from service.routes.body import read_body
from service.routes.generation_events import POLL_INTERVAL_S
from service.routes.sse import ClientConnection, encode_event, event_stream_response

_DONE = b"data: [DONE]\n\n"


def blueprint(
    completions: CompletionService, models: ModelList, tokenizer: Tokenizer, characters: RateLimiter
) -> Blueprint:
    """Create the routes; `characters` limits how many characters a client may have scored."""
    routes = Blueprint("openai", __name__)

    @routes.post("/v1/completions")
    def complete() -> Response:
        body = read_body(CompletionRequest)
        count_request(None if body.model == OPENAI_DEFAULT else body.model)
        if body.echo and body.logprobs is not None:
            characters.hit(f"characters:{g.get('client_id', '')}", sum(map(len, body.prompts)))
        client = ClientConnection(is_stream=bool(body.stream))
        completion = completions.start(body, client.check)
        if body.stream:
            return event_stream_response(_completion_events(completion), client, completion.close, _encode_error)
        try:
            whole = WholeCompletion(completion)
            for part in completion.parts(POLL_INTERVAL_S):
                client.check()
                if part is not None:
                    whole.add(part)
            return jsonify(whole.as_dict())
        finally:
            completion.close()

    @routes.get("/v1/models")
    def listing() -> Response:
        return jsonify(object="list", data=models.listing())

    @routes.get("/v1/models/<model>")
    def get(model: str) -> Response:
        return jsonify(models.get(model))

    @routes.post("/tokenize")
    def tokenize() -> Response:
        return jsonify(tokenizer.tokenize(read_body(TokenizeRequest)))

    @routes.post("/detokenize")
    def detokenize() -> Response:
        return jsonify(tokenizer.detokenize(read_body(DetokenizeRequest)))

    @routes.get("/tokenizer_info")
    def tokenizer_info() -> Response:
        return jsonify(tokenizer.info(model_argument()))

    return routes


def _completion_events(completion: RunningCompletion) -> Iterator[bytes | None]:
    """Yield `data:` lines only, the last of which is [DONE], and None before waiting for more."""
    encoder = ChunkEncoder(completion)
    for part in completion.parts(POLL_INTERVAL_S):
        yield encode_event(encoder.chunk(part)) if part is not None else None
    if encoder.has_usage:
        yield encode_event(encoder.usage_chunk())
    yield _DONE


def _encode_error(error: ServiceError) -> bytes:
    return encode_event(error_body(error))
