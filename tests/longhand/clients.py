"""What the tests of the client share: both clients behind one interface, and a connection that can be cut anywhere."""

from __future__ import annotations

import contextlib
import inspect
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

import longhand

KINDS = ("sync", "async")


@contextlib.contextmanager
def client_of(kind: str, base_url: str, **options: Any) -> Iterator[longhand.Client]:
    """Make a client; an AsyncClient gets the interface of a Client, and runs in an event loop of its own."""
    if kind == "sync":
        with longhand.Client(base_url, **options) as client:
            yield client
    else:
        with start_blocking_portal() as portal:
            client = cast(longhand.Client, _Blocking(portal, longhand.AsyncClient(base_url, **options)))
            try:
                yield client
            finally:
                client.close()


class _Blocking:
    """An asynchronous object whose methods block: what they return is wrapped as well if it is a stream."""

    def __init__(self, portal: BlockingPortal, wrapped: Any) -> None:
        self._portal, self._wrapped = portal, wrapped

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        return self._blocking(value) if callable(value) else value

    def _blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            async def run() -> Any:
                result = function(*arguments, **options)
                return await result if inspect.isawaitable(result) else result

            result = self._portal.call(run)
            return _Blocking(self._portal, result) if hasattr(result, "__anext__") else result

        return call

    def __enter__(self) -> _Blocking:
        self._blocking(self._wrapped.__aenter__)()
        return self

    def __exit__(self, *error: object) -> None:
        self._blocking(self._wrapped.__aexit__)(*error)

    def __iter__(self) -> _Blocking:
        return self

    def __next__(self) -> Any:
        try:
            return self._blocking(self._wrapped.__anext__)()
        except StopAsyncIteration:
            raise StopIteration from None


Cut = Callable[[bytes], int]
"""Says after how many of the bytes that a server has sent the connection is cut; -1: not yet."""


class CuttingProxy:
    """Passes connections on to a server; the first responses are cut, one by each of the cuts, the others are whole."""

    def __init__(self, port: int, *cuts: Cut) -> None:
        self._server_port = port
        self._cuts = list(cuts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_cut = 0
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> CuttingProxy:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            requests = threading.Thread(target=_pass_on, args=(client, server))
            requests.start()
            self._pass_responses(server, client)
            for end in (client, server):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            requests.join()

    def _pass_responses(self, server: socket.socket, client: socket.socket) -> None:
        sent = b""
        while data := _received(server):
            received = sent + data
            at = self._cuts[0](received) if self._cuts else -1
            if at >= 0:  # counted before the client can have the last of it
                self._cuts.pop(0)
                self.n_cut += 1
            with contextlib.suppress(OSError):
                client.sendall(received[len(sent) : at if at >= 0 else None])
            if at >= 0:
                return
            sent = received


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := _received(source):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""
