"""gunicorn's threaded worker, with a thread only for a whole request and never for a slow client.

The poller (the worker's main thread) accepts, reads requests into buffers and writes what a client does not take at
once. A thread runs the application. The states of a connection:

    READING -> QUEUED -> RUNNING -> READING (kept), WRITING -> RUNNING ..., or CLOSING -> closed

Deadlines: a head, a body and a stalled reader have seconds (the constants below), an idle kept connection has
KEEP_ALIVE_S. A running text has none: it may wait for its slot as long as its request allows. When there are too many
connections or too many buffered bytes, those go first that have been incomplete or idle longest. Health checks and
metrics have threads of their own; when no thread is free for QUEUE_S, the answer is 503.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import selectors
import socket
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Any

from gunicorn import http
from gunicorn.http import wsgi
from gunicorn.workers.gthread import ThreadWorker

from service.server.connection import (
    RECV_BYTES,
    BodyReader,
    ClientSocket,
    Connection,
    Exchange,
    RequestBody,
    Stalled,
    State,
)
from service.server.free_memory import return_free_memory
from service.server.request_buffer import Progress, RequestBuffer

log = logging.getLogger(__name__)
HEAD_S = 10.0  # for a request's head, from its first byte or from the connection's beginning
BODY_S = 10.0  # for a body, and a second more for each BODY_BYTES_PER_S of it
BODY_BYTES_PER_S = 16 * 1024
STALL_S = 10.0  # without a byte taken or sent
WRITE_BYTES_PER_S = 1024  # the mean rate at which a response must be taken, after STALL_S
LINGER_S = 2.0  # for a client to close, once it has been told that the connection ends
QUEUE_S = 0.5  # for a whole request to get a thread
STOP_KEEP_ALIVE_S = 2.0  # for a kept connection, once the worker stops
MAX_BUFFERED_BYTES = 64 * 2**20  # of incomplete requests, all together
MAX_LINGER_BYTES = 64 * 1024
BODY_THREADS = 4  # for bodies that are too long to be kept
PROBE_THREADS = 2  # for health checks and metrics
CLOSE_THREADS = 8  # for responses whose client is gone
TICK_S = 0.25
RETURN_MEMORY_S = 5.0  # between two times that free memory goes back to the system
REFUSAL_S = 0.02  # for the request of a connection that is refused; it is in the buffer but for the slowest clients
GIL_INTERVAL_S = 0.001
"""How long a thread may keep Python's lock while others wait for it; Python's default is five times as long. A request
takes the lock several times, behind each thread that is busy: under attack that is the time of an answer."""
_PROBES = (b"/healthz", b"/readyz", b"/metrics")


class BufferedThreadWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A worker of `cfg.threads` threads and any number of slow clients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Start with no connection."""
        super().__init__(*args, **kwargs)
        self.alive: bool
        self.max_body_bytes = 2**20
        self._connections: set[Connection] = set()
        self._queue: deque[Connection] = deque()
        self._running = 0
        self._has_served = False
        self._next_return = time.monotonic() + RETURN_MEMORY_S
        self._buffered = 0
        self._probes: ThreadPoolExecutor
        self._closers: ThreadPoolExecutor
        self._bodies: ThreadPoolExecutor
        self._bodies_running = 0
        self._is_running = False

    def init_process(self) -> None:
        """Make the pools, then load the application and run."""
        sys.setswitchinterval(GIL_INTERVAL_S)
        self._probes = ThreadPoolExecutor(PROBE_THREADS, thread_name_prefix="probe")
        self._closers = ThreadPoolExecutor(CLOSE_THREADS, thread_name_prefix="close")
        self._bodies = ThreadPoolExecutor(BODY_THREADS, thread_name_prefix="body")
        super().init_process()

    def load_wsgi(self) -> None:
        """Load the application, and take its limit of a body."""
        super().load_wsgi()
        gc.collect()
        gc.freeze()  # these objects stay; to look at all of them again takes 40 to 200 ms, in which nothing else runs
        self.max_body_bytes = getattr(self.wsgi, "config", {}).get("MAX_CONTENT_LENGTH") or self.max_body_bytes

    def run(self) -> None:
        """Serve until told to stop, then until all requests have been answered or the time is up."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        self._is_running = True
        self.set_accept_enabled(True)
        while self.alive:
            self.notify()
            self.set_accept_enabled(self._make_room())
            self._poll()
            self._return_memory()
            if not self.is_parent_alive():
                break
        self.set_accept_enabled(False)
        end = time.monotonic() + self.cfg.graceful_timeout
        for connection in self._connections:
            if connection.state is State.READING:
                connection.deadline = min(connection.deadline, time.monotonic() + STOP_KEEP_ALIVE_S)
        while self._connections and time.monotonic() < end:
            self.notify()
            self._poll()
            self._refuse_backlog()
        self._is_running = False
        for connection in list(self._connections):
            self._discard(connection)
        for pool in (self.tpool, self._probes, self._bodies, self._closers):
            pool.shutdown(wait=False)
        self.poller.close()
        self.method_queue.close()
        self._refuse_backlog()
        for listener in self.sockets:
            listener.close()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """End at once on SIGQUIT or SIGINT, by the main loop.

        Not here: the signal can have interrupted code that holds the lock of a pool or starts its thread. The handler
        would wait for that lock for ever, or leave a thread that nothing ends.
        """
        if self._is_running:
            self.method_queue.defer(super().handle_quit, sig, None)
        else:
            super().handle_quit(sig, frame)

    def _return_memory(self) -> None:
        """Now and then, if there was a request since the last time."""
        if self._has_served and time.monotonic() >= self._next_return:
            self._has_served, self._next_return = False, time.monotonic() + RETURN_MEMORY_S
            self._closers.submit(return_free_memory)

    def _refuse_backlog(self) -> None:
        """Answer the connections that nobody accepts while the service shuts down; the listener's end would reset them.

        A worker that ends alone, because it has served enough requests or lost its GPU, leaves them to the others.
        """
        drain = self.wsgi.extensions["drain"]
        if not drain.is_draining or drain.is_replaced:
            return
        answer = error_response(503, "draining", "this worker is shutting down; try again", 1)
        end = time.monotonic() + LINGER_S
        for listener in self.sockets:
            while time.monotonic() < end:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    break
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(REFUSAL_S)
                    connection.recv(RECV_BYTES)
                    connection.sendall(answer)

    def accept(self, listener: Any) -> None:
        """Take a new connection; its request is read by the poller."""
        try:
            accepted, client = listener.accept()
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                return
            if e.errno in (errno.EMFILE, errno.ENFILE) and self._evict():
                return
            raise
        sock = ClientSocket.adopt(accepted)
        parser = http.get_parser(self.cfg, sock, client)
        connection = Connection(
            sock, client, listener.getsockname(), parser, RequestBuffer(self.max_body_bytes), time.monotonic() + HEAD_S
        )
        self._connections.add(connection)
        self.nr_conns = len(self._connections)
        self._await_request(connection, b"", HEAD_S)

    # ---- the poller: reading

    def _await_request(self, connection: Connection, data: bytes, deadline_s: float) -> None:
        connection.buffer = RequestBuffer(self.max_body_bytes)
        connection.exchange = None
        connection.is_streamed = False
        self._enter(connection, State.READING, deadline_s, selectors.EVENT_READ, self._on_readable)
        if data:
            self._take_in(connection, data)

    def _on_readable(self, connection: Connection, _sock: Any) -> None:
        try:
            data = connection.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._discard(connection)
            return
        if not data:
            self._discard(connection)  # nobody waits for an answer to half a request
            return
        self._take_in(connection, data)

    def _take_in(self, connection: Connection, data: bytes) -> None:
        buffer = connection.buffer
        begins, had_head = not len(buffer), buffer.has_head
        self._buffered += len(data)
        progress = buffer.feed(data)
        if progress is Progress.INCOMPLETE:
            if not had_head and buffer.has_head:
                if buffer.expects_continue:
                    try:
                        connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    except OSError:
                        self._discard(connection)
                        return
                connection.deadline = time.monotonic() + BODY_S + buffer.body_bytes / BODY_BYTES_PER_S
            elif begins:
                connection.deadline = time.monotonic() + HEAD_S
            if self._buffered > MAX_BUFFERED_BYTES:
                self._evict(but=connection)
            return
        if progress is Progress.HEAD_TOO_LARGE:
            self._refuse(connection, 431, "head_too_large", "the request's head is larger than 32 KiB")
            return
        connection.is_streamed = progress is Progress.STREAMED
        self.poller.unregister(connection.sock)
        line = buffer.request_line.split(b" ")
        if len(line) > 1 and line[1].partition(b"?")[0] in _PROBES:
            self._start(connection, self._probes)
        elif connection.is_streamed:
            self._start_streamed(connection)
        else:
            connection.state, connection.deadline = State.QUEUED, time.monotonic() + QUEUE_S
            self._queue.append(connection)
            self._dispatch()

    def _start_streamed(self, connection: Connection) -> None:
        if self._bodies_running >= BODY_THREADS:
            message = f"{BODY_THREADS} long request bodies are being read already; try again"
            self._refuse(connection, 503, "overloaded", message, 2)
            return
        self._bodies_running += 1
        self._start(connection, self._bodies)

    def _dispatch(self) -> None:
        while self._queue and self._running < self.cfg.threads:
            self._running += 1
            self._start(self._queue.popleft(), self.tpool)

    # ---- a thread has the connection

    def _start(self, connection: Connection, pool: ThreadPoolExecutor) -> None:
        connection.state, connection.deadline = State.RUNNING, float("inf")
        taken = len(connection.buffer)
        data = connection.buffer.take() if connection.exchange is None else b""
        self._buffered -= taken
        future = pool.submit(self._serve, connection, data)
        future.add_done_callback(lambda done: self.method_queue.defer(self._on_served, connection, pool, done))

    def _serve(self, connection: Connection, data: bytes) -> bool:
        """Run the application until its response is written, or until the client has to read first.

        Returns:
            Whether the connection is kept, once everything has been sent.
        """
        request = None
        try:
            if connection.exchange is None:
                if connection.is_streamed:
                    connection.parser.unreader = BodyReader(
                        connection.sock, idle_s=STALL_S, grace_s=BODY_S, min_bytes_per_s=BODY_BYTES_PER_S
                    )
                connection.parser.unreader.unread(data)
                request = next(connection.parser)
                connection.exchange = self._begin(connection, request)
            return self._write(connection, connection.exchange)
        except (http.errors.NoMoreData, StopIteration):
            log.debug("a client closed its connection before its request was whole")
        except Stalled as e:
            log.info("a connection was closed: %s", e)
        except OSError as e:
            if e.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF):
                log.exception("a connection failed")
        except Exception as e:
            if connection.exchange is not None and connection.exchange.response.headers_sent:
                log.exception("a response ended in an error after its head had been sent")
                connection.exchange.response.force_close()
            else:
                self.handle_error(request, connection.sock, connection.client, e)
        self._end(connection)
        return False

    def _begin(self, connection: Connection, request: Any) -> Exchange:
        self.cfg.pre_request(self, request)
        started = datetime.now()
        request._expected_100_continue = request._expected_100_continue and connection.is_streamed
        response, environ = wsgi.create(request, connection.sock, connection.client, connection.server, self.cfg)
        environ["wsgi.multithread"] = True
        environ["wsgi.input"] = RequestBody(environ["wsgi.input"])
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            log.info("the worker restarts after %d requests", self.nr)
            self.alive = False
        if not self.alive or not self.cfg.keepalive or connection.is_streamed:
            response.force_close()
        body = self.wsgi(environ, response.start_response)
        return Exchange(request, response, environ, body, iter(body), started)

    def _write(self, connection: Connection, exchange: Exchange) -> bool:
        sock = connection.sock
        sock.cork()
        try:
            for part in exchange.parts:
                if part:
                    exchange.response.write(part)
                else:  # the next part may take a while
                    exchange.response.send_headers()
                    sock.push()
                if sock.unsent:
                    sock.uncork()
                    return False
            if not exchange.is_written:
                exchange.is_written = True
                exchange.response.close()
        except BaseException:
            with contextlib.suppress(OSError):  # a client that is gone does not hide what went wrong
                sock.uncork()
            raise
        sock.uncork()
        if not exchange.response.should_close() and not connection.parser.finish_body():
            exchange.response.force_close()
        self._end(connection)
        return not exchange.response.should_close()

    def _end(self, connection: Connection) -> None:
        """Close the application's iterable, once; runs in a thread, since it may use the network."""
        exchange = connection.exchange
        if exchange is None or exchange.body is None:
            return
        body, exchange.body = exchange.body, None
        exchange.is_written = True
        exchange.parts = iter(())
        try:
            if hasattr(body, "close"):
                body.close()
            self.log.access(exchange.response, exchange.request, exchange.environ, datetime.now() - exchange.started)
            self.cfg.post_request(self, exchange.request, exchange.environ, exchange.response)
        except Exception:
            log.exception("a response could not be closed")

    # ---- the poller has it again: writing, keeping, closing

    def _on_served(self, connection: Connection, pool: ThreadPoolExecutor, done: Any) -> None:
        if pool is self.tpool:
            self._running -= 1
        elif pool is self._bodies:
            self._bodies_running -= 1
        self._has_served = True
        is_kept = not done.cancelled() and done.exception() is None and done.result()
        connection.state = State.CLOSING  # unless it is found to go on
        if connection not in self._connections:
            connection.sock.close()
        elif connection.sock.unsent:
            self._enter(connection, State.WRITING, STALL_S, selectors.EVENT_WRITE, self._on_writable)
        elif is_kept:
            self._keep(connection)
        else:
            self._linger(connection)
        self._dispatch()

    def _on_writable(self, connection: Connection, _sock: Any) -> None:
        try:
            sent = connection.sock.flush()
        except OSError:
            self._discard(connection)
            return
        now = time.monotonic()
        connection.written += sent
        if sent:
            allowed = STALL_S + connection.written / WRITE_BYTES_PER_S
            connection.deadline = min(now + STALL_S, connection.since + allowed)
        if connection.sock.unsent:
            return
        self.poller.unregister(connection.sock)
        exchange = connection.exchange
        if exchange is None or exchange.is_written:
            if exchange is not None and not exchange.response.should_close():
                self._keep(connection)
            else:
                self._linger(connection)
            return
        connection.state, connection.deadline = State.QUEUED, float("inf")  # a response that has begun is not refused
        self._queue.appendleft(connection)
        self._dispatch()

    def _keep(self, connection: Connection) -> None:
        connection.is_kept = True
        rest = connection.parser.unreader.take_buffered()
        self._await_request(connection, rest, self.cfg.keepalive if self.alive else STOP_KEEP_ALIVE_S)

    def _linger(self, connection: Connection) -> None:
        """End our side, and read until the client ends its own: a close at once could cost it the last bytes."""
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._discard(connection)
            return
        self._enter(connection, State.CLOSING, LINGER_S, selectors.EVENT_READ, self._on_closing)

    def _on_closing(self, connection: Connection, _sock: Any) -> None:
        try:
            data = connection.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.drained += len(data)
        if not data or connection.drained > MAX_LINGER_BYTES:
            self._discard(connection)

    def _refuse(
        self, connection: Connection, status: int, code: str, message: str, retry_after_s: int | None = None
    ) -> None:
        """Answer without a thread, then close."""
        if connection.sock in self.poller.get_map():
            self.poller.unregister(connection.sock)
        self._buffered -= len(connection.buffer)
        connection.buffer = RequestBuffer(self.max_body_bytes)
        try:
            connection.sock.sendall(error_response(status, code, message, retry_after_s))
        except OSError:
            self._discard(connection)
            return
        self._linger(connection)

    def _discard(self, connection: Connection) -> None:
        """Close a connection; an application whose response is not finished is told so in a thread."""
        self._forget(connection)
        exchange = connection.exchange
        if connection.state is not State.RUNNING and exchange is not None and exchange.body is not None:
            self._closers.submit(self._end, connection)

    def _forget(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self.nr_conns = len(self._connections)
        self._buffered -= len(connection.buffer)
        with contextlib.suppress(KeyError, ValueError):  # a thread or the queue has it
            self.poller.unregister(connection.sock)
        if connection in self._queue:
            self._queue.remove(connection)
        if connection.state is not State.RUNNING:
            connection.sock.close()

    def _enter(self, connection: Connection, state: State, deadline_s: float, event: int, callback: Any) -> None:
        now = time.monotonic()
        connection.state, connection.since, connection.deadline = state, now, now + deadline_s
        connection.written = 0
        self.poller.register(connection.sock, event, partial(callback, connection))

    # ---- time and room

    def _poll(self) -> None:
        self.wait_for_and_dispatch_events(timeout=TICK_S)
        now = time.monotonic()
        for connection in [c for c in self._connections if c.deadline <= now]:
            self._expire(connection)

    def _expire(self, connection: Connection) -> None:
        if connection.state is State.READING and len(connection.buffer):
            what = "body" if connection.buffer.has_head else "head"
            self._refuse(connection, 408, "request_timeout", f"the request's {what} did not arrive in time")
        elif connection.state is State.QUEUED:
            self._queue.remove(connection)
            self._refuse(connection, 503, "overloaded", "every thread of this worker is busy; try again", 1)
        else:
            self._discard(connection)

    def _make_room(self) -> bool:
        """Whether another connection can be accepted, closing one that does nothing where that is needed."""
        return len(self._connections) < self.worker_connections or self._evict()

    def _evict(self, but: Connection | None = None) -> bool:
        """Close the connection that has done nothing for longest. Returns whether there was one."""
        idle = [c for c in self._connections if c.state in (State.READING, State.CLOSING) and c is not but]
        if not idle:
            idle = [c for c in self._connections if c.state is State.WRITING]
        if not idle:
            return False
        self._discard(min(idle, key=lambda c: c.since))
        return True

    def handle_error(self, req: Any, client: ClientSocket, addr: Any, exc: Exception) -> None:
        """Answer a request that is not HTTP, or that the application failed on, in the API's form."""
        if isinstance(exc, http.errors.ParseException | http.errors.ForbiddenProxyRequest):
            status, code = _STATUS.get(type(exc), (400, "bad_request"))
            log.info("a request was refused: %s", exc)
            message = f"the request is not valid HTTP: {exc}"
        else:
            log.exception("a request failed", exc_info=exc)
            status, code, message = 500, "internal", "an error on our side; it has been logged"
        client.sendall(error_response(status, code, message))


_STATUS = {
    http.errors.LimitRequestLine: (414, "uri_too_long"),
    http.errors.LimitRequestHeaders: (431, "head_too_large"),
    http.errors.UnsupportedTransferCoding: (501, "not_implemented"),
    http.errors.ExpectationFailed: (417, "expectation_failed"),
}
_PHRASES = {
    400: "Bad Request", 408: "Request Timeout", 414: "URI Too Long", 417: "Expectation Failed",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable",
}  # fmt: skip


def error_response(status: int, code: str, message: str, retry_after_s: int | None = None) -> bytes:
    """Return a whole response in the API's form of an error, after which the connection closes."""
    body = json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False).encode()
    retry = f"Retry-After: {retry_after_s}\r\n" if retry_after_s is not None else ""
    head = (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"{retry}Connection: close\r\n\r\n"
    )
    return head.encode() + body
