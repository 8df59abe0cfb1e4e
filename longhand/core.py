"""What both clients do, written once over a Transport: requests, retries, answers."""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from longhand.errors import QUOTED_CHARS, InvalidResponse, LonghandError, NotFound, connection_failed, response_error
from longhand.retry import RetryPolicy
from longhand.schemas import (
    Answer,
    Checkpoint,
    Corpus,
    Fork,
    GenerateOptions,
    ItemOptions,
    ItemScores,
    Job,
    LayoutOptions,
    Models,
    NamedModel,
    Score,
    Session,
)
from longhand.transport import Transport

AnswerT = TypeVar("AnswerT", bound=Answer)
DEFAULT_URL = "http://127.0.0.1:8000"
LOST = (httpx.TransportError, httpx.DecodingError)
"""What httpx raises for a connection that fails, or that is cut in the middle of a compressed body."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request that can be sent again."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    content: bytes | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    is_repeatable: bool = True  # whether it is harmless if the server does it twice


def http_options(base_url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the options of the httpx client that a client makes for itself.

    Raises:
        ValueError: A value cannot be used.
    """
    if not _is_address(base_url):
        raise ValueError(f"base_url: got {base_url!r}, expected an address such as {DEFAULT_URL}")
    if not timeout_s > 0:
        raise ValueError(f"timeout_s: got {timeout_s!r}, expected a number of seconds above 0")
    headers = {"User-Agent": "longhand-client"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return {
        "base_url": base_url,
        "headers": headers,
        "timeout": httpx.Timeout(timeout_s, pool=None),
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),  # a stream holds its connection
    }


def _is_address(base_url: str) -> bool:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def generate_call(prompt: str, options: GenerateOptions, idempotency_key: str | None) -> Call:
    """Return the request for a streamed text, with an Idempotency-Key that makes it repeatable.

    Raises:
        ValueError: Several texts or items are requested: they have no session, so their stream could not be resumed.
    """
    if options.get("n", 1) != 1:
        raise ValueError(f"n: got {options.get('n')!r}, expected 1: call once for each text, each with its own seed")
    if options.get("items") is not None:
        raise ValueError(f"items: got {options.get('items')!r}, expected none: call `items` for the items of a list")
    body = {"prompt": prompt, **_without_none(options), "stream": True}
    return Call("POST", "/generate", body=body, headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())})


def items_call(n: int, prompt: str, options: ItemOptions) -> Call:
    """Return the request for a stream of items; with a seed of its own, so that a repetition brings the same ones."""
    body = {"items": n, "prompt": prompt, **_without_none(options), "stream": True}
    body.setdefault("seed", secrets.randbits(53))
    return Call("POST", "/generate", body=body)


def session_path(session_id: str) -> str:
    """Return the path of a session."""
    return f"/sessions/{quote(session_id, safe='')}"


def job_path(job_id: str) -> str:
    """Return the path of a job."""
    return f"/jobs/{quote(job_id, safe='')}"


def parse(schema: type[AnswerT], data: object) -> AnswerT:
    """Return an answer as an object.

    Raises:
        InvalidResponse: It has not the fields that it should have.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        raise InvalidResponse(f"{schema.__name__}: {place}: {first['msg']}") from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InvalidResponse: The text is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidResponse(f"expected JSON, got {text[:QUOTED_CHARS]!r}") from error


class Core:
    """The requests of both clients."""

    def __init__(self, transport: Transport, retry: RetryPolicy) -> None:
        """Connect the requests to what sends them."""
        self.transport = transport
        self.retry = retry

    async def attempt(self, call: Call) -> httpx.Response:
        """Send a request once. The body of its response is not read yet.

        Raises:
            ConnectionFailed: There was no response.
            APIError: The response is an error.
        """
        options: dict[str, Any] = {"headers": call.headers, "params": call.query or None}
        options |= {"json": call.body} if call.body is not None else {"content": call.content}
        request = self.transport.build(call.method, call.path, **options)
        try:
            response = await self.transport.send(request)
            if response.is_success:
                return response
            await self.transport.read(response)
        except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
            raise  # the caller's mistake, such as a line end in a key
        except LOST as error:
            raise connection_failed(error, request.url) from error
        raise response_error(response)

    async def read(self, response: httpx.Response) -> None:
        """Read a response's body, and close it.

        Raises:
            ConnectionFailed: The connection was lost before its end.
        """
        try:
            await self.transport.read(response)
        except LOST as error:
            raise connection_failed(error, response.url) from error

    async def send(self, call: Call) -> httpx.Response:
        """Send a request, again if that can help, and return the response with its body.

        Raises:
            LonghandError: The last failure.
        """
        attempts = self.retry.attempts()
        while True:
            try:
                response = await self.attempt(call)
                await self.read(response)
                return response
            except LonghandError as error:
                delay = attempts.delay_after(error, is_repeatable=call.is_repeatable)
            await self.transport.sleep(delay)

    async def _get(self, schema: type[AnswerT], call: Call) -> AnswerT:
        return parse(schema, parse_json((await self.send(call)).text))

    async def session(self, session_id: str) -> Session:
        """Implement Client.session."""
        return await self._get(Session, Call("GET", session_path(session_id)))

    async def fork(self, session_id: str, position: int | None, seed: int | None) -> Fork:
        """Implement Client.fork."""
        body = _without_none({"position": position, "seed": seed})
        return await self._get(Fork, Call("POST", f"{session_path(session_id)}/fork", body=body))

    async def delete_session(self, session_id: str) -> None:
        """Implement Client.delete_session."""
        await self._delete(session_path(session_id))

    async def score(
        self, text: str, session_id: str | None, logprobs: int | None, on_unknown: str | None, model: str | None
    ) -> Score:
        """Implement Client.score."""
        body = {"text": text, "session_id": session_id, "logprobs": logprobs, "on_unknown": on_unknown, "model": model}
        return await self._get(Score, Call("POST", "/score", body=_without_none(body)))

    async def score_items(
        self, items: Sequence[str], rank_by: str | None, on_unknown: str | None, model: str | None
    ) -> ItemScores:
        """Implement Client.score_items."""
        body = _without_none({"text": list(items), "rank_by": rank_by, "on_unknown": on_unknown, "model": model})
        return await self._get(ItemScores, Call("POST", "/score", body=body))

    async def retrain(self, settings: Mapping[str, Any], idempotency_key: str | None) -> Job:
        """Implement Client.retrain."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return await self._get(Job, Call("POST", "/retrain", body=settings, headers=headers))

    async def jobs(self) -> list[Job]:
        """Implement Client.jobs."""
        return [parse(Job, job) for job in await self._listing("/jobs", "jobs")]

    async def job(self, job_id: str) -> Job:
        """Implement Client.job."""
        return await self._get(Job, Call("GET", job_path(job_id)))

    async def cancel_job(self, job_id: str) -> Job:
        """Implement Client.cancel_job."""
        return await self._get(Job, Call("DELETE", job_path(job_id)))

    async def models(self, model: str, after: str | None, limit: int | None) -> Models:
        """Implement Client.models."""
        query = {"model": model, "after": after, "limit": str(limit) if limit is not None else None}
        return await self._get(Models, Call("GET", "/models", query=_without_none(query)))

    async def model(self, name: str) -> NamedModel:
        """Implement Client.model."""
        return await self._get(NamedModel, Call("GET", _model_path(name)))

    async def delete_model(self, name: str) -> None:
        """Implement Client.delete_model."""
        await self._delete(_model_path(name))

    async def promote(self, model_id: str, model: str) -> Checkpoint:
        """Implement Client.promote."""
        return await self._promoted(Call("POST", f"{_model_path(model_id)}/promote", body={"model": model}))

    async def rollback(self, model: str) -> Checkpoint:
        """Implement Client.rollback."""
        return await self._promoted(Call("POST", "/models/rollback", body={"model": model}, is_repeatable=False))

    async def put_corpus(self, name: str, text: str, layout: LayoutOptions) -> Corpus:
        """Implement Client.put_corpus."""
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        query = {k: json.dumps(v) if isinstance(v, bool) else str(v) for k, v in _without_none(layout).items()}
        call = Call("PUT", _corpus_path(name), content=text.encode(), query=query, headers=headers)
        return await self._get(Corpus, call)

    async def corpora(self) -> list[Corpus]:
        """Implement Client.corpora."""
        return [parse(Corpus, corpus) for corpus in await self._listing("/corpora", "corpora")]

    async def delete_corpus(self, name: str) -> None:
        """Implement Client.delete_corpus."""
        await self._delete(_corpus_path(name))

    async def _delete(self, path: str) -> None:
        """Delete what is at a path. When the answer to an earlier attempt was lost, "not found" is its success."""
        try:
            await self.send(Call("DELETE", path))
        except NotFound as error:
            if not error.may_be_done:
                raise

    async def _listing(self, path: str, name: str) -> list[object]:
        answer = parse_json((await self.send(Call("GET", path))).text)
        try:
            return list(answer[name])
        except (KeyError, TypeError) as error:
            raise InvalidResponse(f"{path}: the answer has no list `{name}`") from error

    async def _promoted(self, call: Call) -> Checkpoint:
        answer = parse_json((await self.send(call)).text)
        return parse(Checkpoint, answer.get("promoted") if isinstance(answer, dict) else None)


def _model_path(name: str) -> str:
    return f"/models/{quote(name, safe='')}"


def _corpus_path(name: str) -> str:
    return f"/corpora/{quote(name, safe='')}"


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value. None means that the server chooses."""
    return {name: value for name, value in fields.items() if value is not None}
