"""The only difference between the two clients: how a request is sent, an event is read, and time passes.

Everything else is written once, as coroutines. The synchronous transport's methods never suspend, so that `run` can
run such a coroutine to its end without an event loop, also inside of one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that uses a SyncTransport."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("a coroutine of the synchronous client was suspended")


class EventReader(Protocol):
    """The events of one response."""

    async def next(self) -> ServerSentEvent | None:
        """Return the next event; None at the end of the response."""
        ...

    async def close(self) -> None:
        """Close the response. Idempotent."""
        ...


class Transport(Protocol):
    """An HTTP client."""

    def build(self, method: str, path: str, **options: Any) -> httpx.Request:
        """Make a request; the options are those of httpx."""
        ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response, of which only the head was read."""
        ...

    async def read(self, response: httpx.Response) -> None:
        """Read the body, and close the response."""
        ...

    def events(self, response: httpx.Response) -> EventReader:
        """Read the body as events."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class SyncTransport:
    """Implements `Transport` over httpx.Client."""

    def __init__(self, http: httpx.Client) -> None:
        """Use this client."""
        self._http = http

    def build(self, method: str, path: str, **options: Any) -> httpx.Request:
        """Implement Transport.build."""
        return self._http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Implement Transport.send."""
        return self._http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        """Implement Transport.read."""
        try:
            response.read()
        finally:
            response.close()

    def events(self, response: httpx.Response) -> EventReader:
        """Implement Transport.events."""
        return _SyncEvents(response)

    async def sleep(self, seconds: float) -> None:
        """Implement Transport.sleep."""
        time.sleep(seconds)

    async def close(self) -> None:
        """Implement Transport.close."""
        self._http.close()


class _SyncEvents:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._events: Iterator[ServerSentEvent] = EventSource(response).iter_sse()

    async def next(self) -> ServerSentEvent | None:
        return next(self._events, None)

    async def close(self) -> None:
        self._response.close()


class AsyncTransport:
    """Implements `Transport` over httpx.AsyncClient."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        """Use this client."""
        self._http = http

    def build(self, method: str, path: str, **options: Any) -> httpx.Request:
        """Implement Transport.build."""
        return self._http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Implement Transport.send."""
        return await self._http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> None:
        """Implement Transport.read."""
        try:
            await response.aread()
        finally:
            await response.aclose()

    def events(self, response: httpx.Response) -> EventReader:
        """Implement Transport.events."""
        return _AsyncEvents(response)

    async def sleep(self, seconds: float) -> None:
        """Implement Transport.sleep."""
        await anyio.sleep(seconds)

    async def close(self) -> None:
        """Implement Transport.close."""
        await self._http.aclose()


class _AsyncEvents:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._events: AsyncGenerator[ServerSentEvent, None] = EventSource(response).aiter_sse()

    async def next(self) -> ServerSentEvent | None:
        return await anext(self._events, None)

    async def close(self) -> None:
        await self._events.aclose()
        await self._response.aclose()
