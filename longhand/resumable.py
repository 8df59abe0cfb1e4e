"""Streams that go on where they were lost: a text after its last character, a job after its last event.

A stream is exact: every character once, in order. The position after each chunk is compared with the characters that
were received; a repeated part is dropped, and a gap is an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import httpx
from httpx_sse import ServerSentEvent

from longhand.core import LOST, Call, Core, job_path, parse, parse_json, session_path
from longhand.errors import ConnectionFailed, InvalidResponse, LonghandError, connection_failed, stream_error
from longhand.schemas import (
    Chunk,
    Generation,
    Item,
    ItemsResult,
    ItemsStart,
    Job,
    JobEvent,
    Logprob,
    ModelName,
    StreamStart,
)
from longhand.transport import EventReader

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class ResumableStream(ABC, Generic[ItemT, ResultT]):
    """A stream of items and, after the last one, a result. It is opened by the first `receive`, or by `open`."""

    def __init__(self, core: Core) -> None:
        """Connect nothing yet."""
        self._core = core
        self._attempts = core.retry.attempts()
        self._events: EventReader | None = None
        self._connections = 0
        self.result: ResultT | None = None

    @property
    def reconnects(self) -> int:
        """How often the stream was resumed."""
        return max(0, self._connections - 1)

    async def open(self) -> None:
        """Send the request.

        Raises:
            LonghandError: The server refused it, or could not be reached.
        """
        while self._events is None and self.result is None:
            try:
                await self._connect()
            except LonghandError as error:
                await self._pause_after(error)

    async def receive(self) -> ItemT | None:
        """Return the next item; None after the last one.

        Raises:
            LonghandError: The stream cannot go on.
        """
        while self.result is None:
            await self.open()
            try:
                item = await self._next_item()
            except LonghandError as error:
                await self._pause_after(error)
            except BaseException:
                await self.close()
                raise
            else:
                if item is not None:
                    self._attempts.succeeded()
                    return item
        await self.close()
        return None

    async def close(self) -> None:
        """Close the connection; the server stops to generate. Idempotent."""
        events, self._events = self._events, None
        if events is not None:
            await events.close()

    async def _connect(self) -> None:
        response = await self._core.attempt(self._call())
        if response.status_code == httpx.codes.NO_CONTENT:
            await self._core.read(response)
            await self._on_nothing_left()
            return
        content_type = response.headers.get("Content-Type", "")
        if not content_type.startswith("text/event-stream"):
            await self._core.read(response)
            raise InvalidResponse(f"expected a stream of events, got {content_type or 'no Content-Type'}")
        self._connections += 1
        self._response = response
        self._events = self._core.transport.events(response)

    async def _next_item(self) -> ItemT | None:
        if self._events is None:
            return None  # opening it has brought the result
        try:
            event = await self._events.next()
        except LOST as error:
            raise connection_failed(error, self._response.url) from error
        if event is None:
            raise ConnectionFailed("the stream ended before its last event", was_sent=True)
        if not event.data:
            return None  # a comment
        if event.event == "error":
            raise stream_error(event.data)
        data = parse_json(event.data)
        if not isinstance(data, dict):
            raise InvalidResponse(f"the data of the event `{event.event}` is not an object")
        return self._take(event, data)

    async def _pause_after(self, error: LonghandError) -> None:
        await self.close()
        is_resumable = self._is_resumable()
        delay = self._attempts.delay_after(error, is_repeatable=is_resumable)
        if not is_resumable:
            raise error  # the request again would be another text
        await self._core.transport.sleep(delay)

    @abstractmethod
    def _call(self) -> Call:
        """Return the request for what was not received yet."""

    @abstractmethod
    def _is_resumable(self) -> bool:
        """Whether `_call` can continue what was received."""

    @abstractmethod
    def _take(self, event: ServerSentEvent, data: dict[str, Any]) -> ItemT | None:
        """Return the event's item, or take what it says and return None."""

    @abstractmethod
    async def _on_nothing_left(self) -> None:
        """React to 204: nothing follows after what was received."""


class GenerationStream(ResumableStream[Chunk, Generation]):
    """A text while it is generated."""

    def __init__(
        self, core: Core, *, initial_call: Call | None = None, session_id: str | None = None,
        after: int | None = None, logprobs: int | None = None,
    ) -> None:  # fmt: skip
        """Begin a text, or go on with the last one of a session.

        Args:
            core: Sends the requests.
            initial_call: The request that begins a text; None to go on.
            session_id: Of the session that goes on.
            after: The position after which it goes on; None: the last turn from its first character.
            logprobs: As in the request.
        """
        super().__init__(core)
        self._initial_call = initial_call
        self._logprobs = logprobs
        self.session_id = session_id
        self.position = after
        self._resume_after = after
        self._has_text = False
        self._texts: list[str] = []
        self._token_logprobs: list[Logprob] = []

    @property
    def text(self) -> str:
        """What was received so far."""
        return "".join(self._texts)

    def _call(self) -> Call:
        if self.session_id is None:  # nothing was received, or nothing was stored
            assert self._initial_call is not None
            return self._initial_call
        headers = {"Last-Event-ID": str(self._resume_after)} if self._resume_after is not None else {}
        query = {"logprobs": str(self._logprobs)} if self._logprobs is not None else {}
        # No model is named: the checkpoint that began the turn goes on with it, whatever its name stands for now.
        return Call("GET", f"{session_path(self.session_id)}/stream", headers=headers, query=query)

    def _is_resumable(self) -> bool:
        return self.session_id is not None or not self._has_text

    def _take(self, event: ServerSentEvent, data: dict[str, Any]) -> Chunk | None:
        if event.event == "start":
            self._take_start(parse(StreamStart, data))
        elif event.event == "message":
            return self._take_chunk(parse(Chunk, {**data, "position": event.id}))
        elif event.event == "done":
            logprobs = {"logprobs": self._token_logprobs} if self._logprobs is not None else {}
            result = parse(Generation, {**data, "text": self.text, **logprobs})
            if result.position != self.position:
                raise InvalidResponse(f"the stream ends at position {result.position}, expected {self.position}")
            self.result = result
        return None

    def _take_start(self, start: StreamStart) -> None:
        self.session_id = start.session_id
        if self._has_text:
            self._require_no_gap(start.position)
        else:
            self.position = start.position if self.position is None else max(self.position, start.position)
            self._resume_after = self.position

    def _take_chunk(self, chunk: Chunk) -> Chunk | None:
        start = chunk.position - len(chunk.text)
        repeated = self._require_no_gap(start) - start
        if repeated >= len(chunk.text):
            return None
        if repeated:
            logprobs = chunk.logprobs[repeated:] if chunk.logprobs is not None else None
            chunk = chunk.model_copy(update={"text": chunk.text[repeated:], "logprobs": logprobs})
        self._has_text = True
        self.position = self._resume_after = chunk.position
        self._texts.append(chunk.text)
        self._token_logprobs += chunk.logprobs or []
        return chunk

    def _require_no_gap(self, position: int) -> int:
        """Return the position of the text that was received; an error if what comes next begins behind it."""
        if self.position is None or position > self.position:
            raise InvalidResponse(f"the stream goes on at position {position}, expected {self.position}")
        return self.position

    async def _on_nothing_left(self) -> None:
        """Have the last character sent again, or the whole turn if there is none, for the event `done` after it."""
        if self._resume_after is None:
            raise InvalidResponse("the server has no stream for this session, although it has a turn")
        is_last_known = self._has_text and self._resume_after == self.position
        self._resume_after = self._resume_after - 1 if is_last_known else None


class ItemStream(ResumableStream[Item, ItemsResult]):
    """Items while they are generated. The same seed brings the same items; those that are known are dropped."""

    def __init__(self, core: Core, call: Call) -> None:
        """Begin.

        Args:
            core: Sends the requests.
            call: The request, with a seed.
        """
        super().__init__(core)
        self._request = call
        self._model: ModelName | None = None
        self._n_received = 0

    def _call(self) -> Call:
        return self._request

    def _is_resumable(self) -> bool:
        return True

    def _take(self, event: ServerSentEvent, data: dict[str, Any]) -> Item | None:
        if event.event == "start":
            model = parse(ItemsStart, data).model
            if self._n_received and model != self._model:
                raise InvalidResponse(f"the items would go on with another model, {model.name}: request them again")
            self._model = model
        elif event.event == "item":
            index = data.pop("index", None)
            if not isinstance(index, int) or index > self._n_received:
                raise InvalidResponse(f"the stream goes on with item {index!r}, expected {self._n_received}")
            if index == self._n_received:
                item = parse(Item, data)
                self._n_received += 1
                return item
        elif event.event == "done":
            result = parse(ItemsResult, data)
            if result.generated < self._n_received:  # after timeout_s began again, there can be fewer
                result = result.model_copy(update={"generated": self._n_received})
            self.result = result
        return None

    async def _on_nothing_left(self) -> None:
        raise InvalidResponse("the server answered 204 to a request for items")


class JobStream(ResumableStream[JobEvent, Job]):
    """The progress of a job."""

    def __init__(self, core: Core, job_id: str) -> None:
        """Follow this job from its first event."""
        super().__init__(core)
        self.job_id = job_id
        self._last_event_id = ""

    def _call(self) -> Call:
        headers = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        return Call("GET", f"{job_path(self.job_id)}/events", headers=headers)

    def _is_resumable(self) -> bool:
        return True

    def _take(self, event: ServerSentEvent, data: dict[str, Any]) -> JobEvent | None:
        if event.event == "done":
            self.result = parse(Job, data)
            return None
        self._last_event_id = event.id or self._last_event_id
        return parse(JobEvent, {"name": event.event, "data": data})

    async def _on_nothing_left(self) -> None:
        self.result = await self._core.job(self.job_id)
