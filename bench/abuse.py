"""Hostile connections beside honest streams: 500 of nine sorts for a minute, directly and behind HAProxy.

    python -m bench.abuse [--seconds 60] [--connections 500] [--ways direct,proxied]

Honest clients stream long texts, and each of their texts is compared with the one made alone. /healthz is asked for
every 100 ms. Both are measured without the hostile connections first. Afterwards the memory, threads and descriptors
of the service are compared with those before; attacks that are not measured come first, until memory no longer grows.
The last line is JSON.

Hostile sorts: half a head; half a body; a stream and a JSON answer that are never read; a reset in the middle of a
stream; a head of 40 KB; pipelined garbage; a half-closed connection; a flood of requests past every limit.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load import Call, Client, Load, quantiles
from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from service.server.worker import RETURN_MEMORY_S
from tests.conftest import random_checkpoint
from tests.integration.test_proxy import Proxy
from tests.servers import ROOT, RedisServer, Service, eventually, parse_events

STREAMS = 32
CHARS = 3000
SEEDS = 16
PROMPT = "hello there "
AGAIN_S = 0.5  # before a hostile client that was closed connects again: it must not need a core of its own
WARM_ROUNDS = 6  # attacks before what is measured, until memory grows by less than WARM_GROWTH
WARM_GROWTH = 1.02
JSON_HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def generate(**body: Any) -> bytes:
    """Return the bytes of a POST /generate."""
    data = json.dumps(body).encode()
    return JSON_HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data


@dataclass
class Hostile:
    """A sort of hostile client: what it sends, whether it reads, and what it does then."""

    data: bytes
    reads: bool = True
    slowly: bytes = b""  # one byte of it every few seconds
    resets_after: int = 0  # bytes read before it resets the connection
    half_closes: bool = False


SORTS = {
    "half a head": Hostile(b"POST /generate HTTP/1.1\r\nHost: localhost\r\n", slowly=b"X-A: " + b"a" * 1000),
    "half a body": Hostile(JSON_HEAD + b"Content-Length: 1000\r\n\r\n", slowly=b"{" + b" " * 900),
    "unread stream": Hostile(generate(max_chars=100_000, stream=True, logprobs=3), reads=False),
    "unread answer": Hostile(generate(max_chars=20_000, logprobs=3), reads=False),
    "reset": Hostile(generate(max_chars=50_000, stream=True), resets_after=2000),
    "large head": Hostile(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 40_000),
    "garbage": Hostile(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(range(256)) * 8),
    "half-closed": Hostile(generate(max_chars=50), half_closes=True),
    "flood": Hostile(generate(max_chars=500, stream=True)),
}


@dataclass(eq=False)
class Attack:
    """One hostile connection."""

    sort: Hostile
    connection: socket.socket
    slow_at: float = 0.0
    sent: int = 0
    read: int = 0


def attack(port: int, connections: int, seconds: float) -> dict[str, int]:
    """Keep so many hostile connections open for so long; the number of times that each sort connected."""
    sorts, counts = list(SORTS.items()), dict.fromkeys(SORTS, 0)
    selector, live = selectors.DefaultSelector(), set[Attack]()
    waiting = [(time.monotonic() + i * 0.002, i) for i in range(connections)]
    end, at = time.monotonic() + seconds, {}
    while (now := time.monotonic()) < end:
        for due, i in [w for w in waiting if w[0] <= now]:
            waiting.remove((due, i))
            name, sort = sorts[i % len(sorts)]
            try:
                one = Attack(sort, socket.socket(), now)
                one.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                one.connection.connect(("127.0.0.1", port))
                one.connection.setblocking(False)
                one.connection.send(sort.data)
                if sort.half_closes:
                    one.connection.shutdown(socket.SHUT_WR)
            except OSError:
                one.connection.close()
                waiting.append((now + AGAIN_S, i))
                continue
            counts[name] += 1
            live.add(one)
            at[one] = i
            if sort.reads:
                selector.register(one.connection, selectors.EVENT_READ, one)
        closed = [one for one in live if not alive(one, now)]
        for key, _ in selector.select(0.05):
            one = key.data
            try:
                data = one.connection.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            one.read += len(data)
            resets = one.sort.resets_after and one.read >= one.sort.resets_after
            if resets:
                one.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if not data or resets:
                closed.append(one)
        for one in set(closed):
            with contextlib.suppress(KeyError):
                selector.unregister(one.connection)
            one.connection.close()
            live.discard(one)
            waiting.append((now + AGAIN_S, at.pop(one)))
    for one in live:
        one.connection.close()
    return counts


def alive(one: Attack, now: float) -> bool:
    """Send the next slow byte when it is due; whether the connection still takes it."""
    if one.sort.slowly and now - one.slow_at > 3:
        one.slow_at = now
        try:
            one.connection.send(one.sort.slowly[one.sent : one.sent + 1])
        except OSError:
            return False
        one.sent += 1
    return True


@dataclass(eq=False)
class Text(Call):
    """An honest call, with all that it was sent."""

    seed: int = 0
    raw: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes, now: float) -> int:
        """Keep what came, and count it."""
        self.raw += data
        return super().take(data, now)


class Honest(Client):
    """Streams of a few seeds, each kept whole."""

    def call(self, now: float) -> None:
        """Begin one."""
        seed = self.rng.randrange(SEEDS)
        connection = socket.create_connection(("127.0.0.1", self.load.port))
        connection.setblocking(False)
        connection.send(self.load.request(seed))
        call = Text(connection, now, position=len(self.load.prompt), seed=seed)
        self.live.add(call)
        self.selector.register(connection, selectors.EVENT_READ, call)


def honest(port: int, seconds: float, expected: list[str]) -> dict[str, Any]:
    """Stream for so long; the measures of bench.load, and how many texts were not the expected ones."""
    client = Honest(Load(port, seconds, streams=STREAMS, chars=CHARS, prompt=PROMPT, warm_s=1.0))
    result = client.run()
    whole = [call for call in client.over if isinstance(call, Text) and call.done]
    wrong = sum(text_of(bytes(call.raw)) != expected[call.seed] for call in whole)
    cut = sum(isinstance(c, Text) and c.status == 200 and not c.done for c in client.over) - STREAMS
    return result | {"wrong": wrong, "cut": max(cut, 0)}


def text_of(raw: bytes) -> str:
    """Return the text of a chunked stream of events."""
    rest, parts = raw.partition(b"\r\n\r\n")[2], []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(rest[:length])
        rest = rest[length + 2 :]
    return "".join(e.data["text"] for e in parse_events(b"".join(parts).decode()) if e.name == "message")


class Health:
    """Asks for /healthz every 100 ms, on a new connection each."""

    def __init__(self, port: int) -> None:
        """Begin."""
        self.seconds: list[float] = []
        self.failures = 0
        self._port = port
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(0.1):
            began = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=80)
            try:
                connection.request("GET", "/healthz")
                self.failures += connection.getresponse().status != 200
            except (OSError, http.client.HTTPException):
                self.failures += 1
            finally:
                connection.close()
            self.seconds.append(time.monotonic() - began)

    def end(self) -> dict[str, Any]:
        """Stop; quantiles in milliseconds, and what failed."""
        self._ends.set()
        self._thread.join()
        return {"ms": quantiles(self.seconds), "failures": self.failures}


def resources(service: Service) -> dict[str, int]:
    """Resident memory in KB, threads and descriptors of all workers."""
    pids = service.workers()
    status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]

    def value(name: str) -> int:
        return sum(int(text.partition(f"{name}:")[2].split()[0]) for text in status)

    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    return {"rss_kb": value("VmRSS"), "threads": value("Threads"), "descriptors": descriptors}


def part(kind: str, *arguments: Any) -> subprocess.Popen[str]:
    """Start a part of the load in a process of its own."""
    command = [sys.executable, "-m", "bench.abuse", "--part", json.dumps([kind, *arguments])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for it."""
    out, _ = process.communicate()
    assert process.returncode == 0, out
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def measure(service: Service, port: int, args: argparse.Namespace, expected: list[str]) -> dict[str, Any]:
    """Quiet, then under attack, then what is left."""

    def round_of(seconds: float, connections: int) -> dict[str, Any]:
        health = Health(port)
        streams = part("honest", port, seconds, expected)
        hostile = part("attack", port, connections, seconds + 2) if connections else None
        result = {"honest": result_of(streams), "health": health.end()}
        if hostile is not None:
            result["connected"] = result_of(hostile)
        eventually(lambda: service.client.get("/readyz").json()["in_flight"] == 0, within_s=60)
        return result

    # pools make their threads, which stay, each with its connection to Redis; the allocator keeps what is in pieces
    warm_kb = [0]
    while len(warm_kb) <= WARM_ROUNDS and (len(warm_kb) < 3 or warm_kb[-1] > WARM_GROWTH * warm_kb[-2]):
        round_of(args.seconds, args.connections)
        time.sleep(RETURN_MEMORY_S + 1)
        warm_kb.append(resources(service)["rss_kb"])
    quiet = round_of(min(args.seconds, 20), 0)
    before = resources(service)
    abused = round_of(args.seconds, args.connections)
    began, after = time.monotonic(), resources(service)
    at_once = after

    def is_back() -> bool:
        return after["descriptors"] <= before["descriptors"] + 8 and after["rss_kb"] <= 1.01 * before["rss_kb"]

    while time.monotonic() - began < 10 and not is_back():
        time.sleep(0.2)
        after = resources(service)
    ratio = abused["honest"]["gap_ms"]["p99"] / quiet["honest"]["gap_ms"]["p99"]
    result = {
        "quiet_gap_ms": quiet["honest"]["gap_ms"], "gap_ms": abused["honest"]["gap_ms"], "p99_ratio": round(ratio, 2),
        "texts": abused["honest"]["whole"], "wrong": abused["honest"]["wrong"], "cut": abused["honest"]["cut"],
        "statuses": abused["honest"]["statuses"], "quiet_health": quiet["health"], "health": abused["health"],
        "warm_kb": warm_kb[1:], "before": before, "at_once": at_once, "after": after,
        "back_after_s": round(time.monotonic() - began, 1),
        "connected": abused["connected"],
    }  # fmt: skip
    for name, value in result.items():
        print(f"  {name}: {value}", flush=True)
    return result


def texts(model: Checkpoint) -> list[str]:
    """Return what each seed writes, alone."""
    stepper, _ = choose(model.network(), 1, "cpu")
    return ["".join(write(stepper, model.vocab, PROMPT, CHARS, SamplingParams(), seed)) for seed in range(SEEDS)]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--ways", default="direct,proxied")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        kind, *arguments = json.loads(args.part)
        print(json.dumps(honest(*arguments) if kind == "honest" else attack(*arguments)))
        return
    random.seed(1)
    model = random_checkpoint(n_layers=2, n_hidden=256)
    expected, result = texts(model), {}
    with tempfile.TemporaryDirectory() as folder:
        registry.promote(model.save(Path(folder)))
        redis = RedisServer()
        redis.start()
        try:
            for way in args.ways.split(","):
                environment = {"CHECKPOINT_DIR": folder, "REDIS_URL": redis.url, "SLOTS": "40", "MAX_WAITING": "24"}
                with Service(**environment, TRUSTED_PROXIES=str(int(way == "proxied"))) as service:
                    print(way, flush=True)
                    if way == "direct":
                        result[way] = measure(service, service.port, args, expected)
                    else:
                        with Proxy(Path(folder), [service]) as proxy:
                            result[way] = measure(service, proxy.port, args, expected)
                            result[way]["server_changes"] = proxy.server_changes()
                            print(*result[way]["server_changes"], sep="\n", flush=True)
        finally:
            redis.remove()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
