"""A light client for loads: one process, one thread, raw sockets; it is on the same cores as what it measures.

    python -m bench.load '{"port": 8000, "streams": 64, "seconds": 5}'     # closed: so many at a time, always
    python -m bench.load '{"port": 8000, "rate": 20.0, "seconds": 5}'      # open: Poisson arrivals, whatever happens

It parses no JSON: of a stream it reads the status, the positions and the end. With "poll_s" it reads all sockets only
so often, so that it costs next to nothing; times are then that coarse. The result is JSON, its own CPU time within.
"""

from __future__ import annotations

import bisect
import itertools
import json
import random
import re
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

POPULAR = 10
"""So many models, the most frequent ones, are popular: of a thousand they have four in ten requests."""
_ID = re.compile(rb"id: (\d+)\n")
_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")


@dataclass
class Load:
    """The load to produce: its rate or its streams, and its requests."""

    port: int
    seconds: float
    streams: int = 0  # closed: calls at a time; 0 is open
    rate: float = 0.0  # open: calls a second
    chars: int = 1000
    prompt: str = "hello there "
    poll_s: float = 0.0
    leave_after: int = 0  # closed: hang up after so many events
    models: int = 0  # call models by name, m0000 and so on, each as often as Zipf's law with exponent 1 says; 0: none
    warm_s: float = 0.0  # what arrives before is not counted
    seed: int = 1

    def request(self, seed: int) -> bytes:
        """Return the bytes of one POST /generate."""
        fields = {"prompt": self.prompt, "max_chars": self.chars, "seed": seed, "stream": True}
        if self.models:
            fields["model"] = f"m{self.rank(seed):04}"
        body = json.dumps(fields)
        head = f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    def rank(self, seed: int) -> int:
        """Return which model a request names: 0 is the most frequent one."""
        return zipf(self.models, random.Random(seed))


@cache
def _popularity(n: int) -> list[float]:
    return list(itertools.accumulate(1 / rank for rank in range(1, n + 1)))


def zipf(n: int, rng: random.Random) -> int:
    """Draw a number below n, of which 0 is the most frequent."""
    weights = _popularity(n)
    return bisect.bisect(weights, rng.random() * weights[-1], hi=n - 1)


@dataclass(eq=False)
class Call:
    """One request and what arrived of its answer. Times are those of time.monotonic."""

    connection: socket.socket
    began: float
    is_popular: bool = False
    status: int = 0
    retry_after: bool = False
    tail: bytes = b""
    events: int = 0
    position: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    gaps: list[float] = field(default_factory=list)
    done: bool = False

    def take(self, data: bytes, now: float) -> int:
        """Read what came; how many new characters are in it."""
        text = self.tail + data
        if not self.status and (matched := _STATUS.match(text)):
            self.status = int(matched[1])
        self.retry_after |= b"Retry-After: " in text
        self.done |= b"event: done" in text
        ids = _ID.findall(text)
        cut = text.rfind(b"\n\n")
        self.tail = text[cut + 2 :][-400:] if cut >= 0 else text[-400:]
        if not ids or int(ids[-1]) <= self.position:
            return 0
        was, self.position = self.position, int(ids[-1])
        self.events += len(ids)
        if self.first_at:
            self.gaps.append(now - self.last_at)
        else:
            self.first_at = now
        self.last_at = now
        return self.position - was


class Client:
    """All calls of a load, read by one thread."""

    def __init__(self, load: Load) -> None:
        """Take the load; nothing is sent before `run`."""
        self.load = load
        self.rng = random.Random(load.seed)
        self.selector = selectors.DefaultSelector()
        self.over: list[Call] = []
        self.live: set[Call] = set()
        self.characters = 0  # that arrived in the time that counts
        self.chars_done = 0  # of calls that were answered whole

    def run(self) -> dict[str, Any]:
        """Produce the load, and return what was measured."""
        load, cpu = self.load, time.process_time()
        start = time.monotonic()
        self.counts_from, end = start + load.warm_s, start + load.warm_s + load.seconds
        next_call = start
        while (now := time.monotonic()) < end:
            if load.streams:
                while len(self.live) < load.streams:
                    self.call(now)
            else:
                while next_call <= now:
                    self.call(next_call)
                    next_call += self.rng.expovariate(load.rate)
            wait = end - now if load.streams else min(end, next_call) - now
            self.read(max(0.0, wait))
            if load.poll_s:
                time.sleep(load.poll_s)
        characters = self.characters
        if not load.streams:  # the calls that arrived in time are part of the load: see them to their ends
            deadline = time.monotonic() + 30
            while self.live and time.monotonic() < deadline:
                self.read(0.1)
        for call in list(self.live):
            self.leave(call)
        return self.result(characters, time.process_time() - cpu, time.monotonic() - start)

    def call(self, now: float) -> None:
        """Open a connection, and send one request."""
        connection = socket.create_connection(("127.0.0.1", self.load.port))
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        seed = self.rng.getrandbits(40)
        connection.send(self.load.request(seed))
        is_popular = bool(self.load.models) and self.load.rank(seed) < POPULAR
        call = Call(connection, now, is_popular, position=len(self.load.prompt))
        self.live.add(call)
        self.selector.register(connection, selectors.EVENT_READ, call)

    def read(self, wait_s: float) -> None:
        """Read what has arrived within these seconds."""
        for key, _ in self.selector.select(wait_s):
            call: Call = key.data
            try:
                data = call.connection.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            now = time.monotonic()
            new = call.take(data, now)
            if now >= self.counts_from:
                self.characters += new
            if not data or (self.load.leave_after and call.events >= self.load.leave_after):
                self.leave(call)

    def leave(self, call: Call) -> None:
        """Close a connection, whether its answer has ended or not."""
        self.selector.unregister(call.connection)
        call.connection.close()
        self.live.discard(call)
        self.over.append(call)

    def result(self, characters: int, cpu_s: float, took_s: float) -> dict[str, Any]:
        """Return rates, percentiles of the waiting times in milliseconds, and counts of statuses."""
        statuses: dict[str, int] = {}
        for call in self.over:
            name = str(call.status) if call.status else "unanswered at the end"
            statuses[name] = statuses.get(name, 0) + 1
        whole = [c for c in self.over if c.done]
        gaps = [g for c in self.over for g in c.gaps]
        counted = [c for c in self.over if c.first_at and c.began >= self.counts_from]
        refused = [c for c in self.over if c.status == 429]
        return {
            "calls": len(self.over),
            "statuses": statuses,
            "whole": len(whole),
            "chars_per_s": characters / self.load.seconds,
            "first_ms": quantiles([c.first_at - c.began for c in counted]),
            "popular_first_ms": quantiles([c.first_at - c.began for c in counted if c.is_popular]),
            "gap_ms": quantiles(gaps),
            "events": sum(c.events for c in self.over),
            "refused_without_retry_after": sum(not c.retry_after for c in refused),
            "refused_with_text": sum(c.events > 0 for c in refused),
            "client_cpu": cpu_s / took_s,
        }


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and the most, in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    at = {"p50": len(ordered) // 2, "p99": min(len(ordered) - 1, int(len(ordered) * 0.99)), "max": len(ordered) - 1}
    return {name: round(1000 * ordered[i], 2) for name, i in at.items()}


if __name__ == "__main__":
    print(json.dumps(Client(Load(**json.loads(sys.argv[1]))).run()))
