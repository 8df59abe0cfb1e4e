"""Streams under fire: workers are killed, stopped and restarted, Redis goes away, connections drop; no character may.

    python -m bench.chaos                      # 200 streams at a time, 100 kills, 10^6 characters
    python -m bench.chaos --kills 5 --characters 30000 --streams 20
    python -m bench.chaos --models 20 --kills 20 --characters 100000 --streams 40
    python -m bench.chaos --negative-control   # saves are off by one: it must find differences

Workers are whole services on one Redis, behind a proxy that takes any of them for each connection and drops some. Each
client reads a stream, and when it breaks asks again: by Idempotency-Key before it knows its session, by Last-Event-ID
after. At the end every text is compared with the one that a stepper makes alone. With --models, each session is of one
of so many models, which it names in its first request only, and each worker has memory for three quarters of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import EventSource

from model.checkpoints import registry
from model.checkpoints.names import store_folder
from model.network.penalties import prompt_codes
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write
from model.structured_outputs.specification import StructuredOutputs
from tests.conftest import ALPHABET, random_checkpoint
from tests.servers import ROOT, RedisServer, Service, as_event

TURNS = 2
SAMPLING = SamplingParams(0.9, typical_p=0.95, repetition_penalty=1.1, frequency_penalty=0.3, presence_penalty=0.2)
LOGIT_BIAS = {"e": -1.0, " ": 0.5}
FORMS = {
    pattern: StructuredOutputs("regex", pattern).compile(ALPHABET)
    for pattern in ("(?:[a-m]{1,9} |[n-z]{2}!)*", "(?:[^!]{1,80}!\n){0,40}")
}
"""Structured outputs of some turns; each may be empty, so they fit into every length."""


@dataclass
class ClientSession:
    """A session's text as its client saw it, and the turns that it requested."""

    seed: int
    model: int = 0
    turns: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    finished: bool = False
    unlocked: bool = False


@dataclass
class Proxy:
    """Takes each connection to any of the workers, and drops one in fifty for no reason."""

    ports: list[int]
    rng: random.Random
    dropped: int = 0

    async def start(self) -> str:
        """Listen on a free port, and return the address."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.rng.choice(self.ports))
        except OSError:
            writer.transport.abort()
            return
        pipes = [asyncio.create_task(p) for p in (_pipe(reader, up_writer), _pipe(up_reader, writer))]
        drop = self.rng.random() < 0.02
        self.dropped += drop
        with suppress(asyncio.CancelledError):  # the benchmark is over
            await asyncio.wait(pipes, timeout=self.rng.random() * 3 if drop else None, return_when="FIRST_COMPLETED")
        for pipe in pipes:
            pipe.cancel()
        for w in (writer, up_writer):
            w.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class Client:
    """Gets whole texts through whatever happens."""

    def __init__(self, url: str, counts: Counter[str], names_models: bool) -> None:
        """Take the address to call, the counter of what happens, and whether requests name models."""
        self._names_models = names_models
        self._http = httpx.AsyncClient(base_url=url, timeout=15, limits=httpx.Limits(max_keepalive_connections=0))
        self._counts = counts

    async def run(self, session: ClientSession, lengths: list[int], rng: random.Random) -> None:
        """Generate the turns of a session, one after the other, of these lengths in characters."""
        session_id, position = "", 0
        for n in lengths:
            prompt = "".join(rng.choices(ALPHABET.characters, k=rng.randrange(0, 30)))
            payload = {"prompt": prompt, "max_chars": n, "seed": session.seed, "stream": True}
            payload |= {**SAMPLING.as_dict(), "logit_bias": LOGIT_BIAS}
            form = rng.choice([None, *FORMS])
            if form is not None:
                payload["structured_outputs"] = {"regex": form}
            session.turns.append({"prompt": prompt, "max_chars": n, "form": form})
            session.text += prompt
            if session_id:
                payload["session_id"] = session_id
            elif self._names_models:
                payload["model"] = f"m{session.model}"
            session_id, position = await self._turn(session, payload, position + len(prompt))
        session.finished = True
        record = await self._insist("GET", f"/sessions/{session_id}")
        session.unlocked = record["turn"]["status"] in ("length", "stop") and record["position"] == position

    async def _turn(self, session: ClientSession, payload: dict[str, Any], position: int) -> tuple[str, int]:
        key, session_id = str(uuid.uuid4()), ""
        start_position, start_text = position, session.text
        while True:
            if not session_id:  # what came without a session, while Redis was away, cannot be gone on with
                position, session.text = start_position, start_text
            if session_id:
                request = self._http.build_request(
                    "GET", f"/sessions/{session_id}/stream", headers={"Last-Event-ID": str(position)}
                )
            else:
                request = self._http.build_request("POST", "/generate", json=payload, headers={"Idempotency-Key": key})
            try:
                response = await self._http.send(request, stream=True)
                if response.status_code == 204:  # all of the text is here; only the stream's last event was lost
                    return session_id, position
                if response.status_code != 200:
                    await response.aread()
                    self._counts[f"{response.status_code} {response.json()['error']['code']}"] += 1
                    await asyncio.sleep(0.2)
                    continue
                async for received in EventSource(response).aiter_sse():
                    if received.data:  # else it is a comment
                        event = as_event(received)
                        if event.name == "start":
                            session_id = event.data["session_id"] or ""
                        elif event.name == "message":
                            assert event.id is not None
                            session.text += event.data["text"]
                            position += len(event.data["text"])
                            if position != event.id:
                                self._counts["events out of place"] += 1
                        elif event.name == "done":
                            if event.data["saved"]:
                                return session_id, position
                            self._counts["unsaved"] += 1  # Redis was away at the end: ask until it is saved
                        else:
                            self._counts[f"event: error {event.data['error']['code']}"] += 1
            except (httpx.TransportError, json.JSONDecodeError):
                self._counts["connection lost"] += 1
            await asyncio.sleep(0.05)
            if position == start_position and not session_id:
                self._counts["repeated by key"] += 1
            else:
                self._counts["resumed"] += 1

    async def _insist(self, method: str, path: str) -> dict[str, Any]:
        while True:
            with suppress(httpx.TransportError):
                response = await self._http.request(method, path)
                if response.status_code == 200:
                    record: dict[str, Any] = response.json()
                    return record
            await asyncio.sleep(0.1)


async def attack(services: list[Service], redis: RedisServer, kills: int, rng: random.Random, done: asyncio.Event,
                 counts: Counter[str]) -> None:  # fmt: skip
    """Kill until enough were killed or the streams are done: always one that is in the middle of texts."""
    while counts["kills"] < kills and not done.is_set():
        victim = rng.choice(services)
        if not await _is_writing(victim):
            await asyncio.sleep(0.05)
            continue
        workers = victim.workers()
        what = rng.choices(["SIGKILL", "SIGTERM", "SIGSTOP", "redis"], weights=[6, 2, 1, 0.3])[0]
        if what == "redis":
            counts["redis restarts"] += 1
            redis.stop()
            await asyncio.sleep(0.5)
            redis.start()
        elif workers and what == "SIGSTOP":
            counts["stops"] += 1
            victim.signal_workers(signal.SIGSTOP)
            await asyncio.sleep(2.0)  # longer than the lease
            victim.signal_workers(signal.SIGCONT)
        elif workers:
            counts["kills"] += 1
            victim.signal_workers(signal.Signals[what])
            if counts["kills"] % 10 == 0:
                print(f"{counts['kills']} kills, {counts['resumed']} streams resumed", file=sys.stderr, flush=True)
        await asyncio.sleep(rng.random() * 1.5)


async def _is_writing(service: Service) -> bool:
    """A worker that was killed takes seconds to come back; to kill it again before would break nothing."""
    async with httpx.AsyncClient(base_url=service.url, timeout=5) as client:
        try:
            return bool((await client.get("/readyz")).json().get("in_flight"))
        except httpx.TransportError:
            return False


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the streams beside the kills, and return the counts."""
    rng, counts = random.Random(args.seed), Counter[str]()
    models = [random_checkpoint(n_layers=2, n_hidden=32, seed=i) for i in range(max(1, args.models))]
    store = Path(tempfile.mkdtemp(prefix="chaos-"))
    registry.promote(models[0].save(store))
    for i, model in enumerate(models if args.models else []):
        registry.promote(model.save(store_folder(store, f"m{i}")))
    redis = RedisServer()
    redis.start()
    settings = {"CHECKPOINT_DIR": str(store), "REDIS_URL": redis.url, "LEASE_S": "1", "SNAPSHOT_INTERVAL_S": "0.2"}
    settings |= {"SLOTS": "100", "MAX_WAITING": "200", "MODELS_MEMORY_MB": str(max(4, 2 * args.models * 3 // 4 + 1))}
    if args.negative_control:
        settings["PYTHONPATH"] = str(_off_by_one(store))
    services = [Service(**settings) for _ in range(args.workers)]
    for service in services:
        service.start()
    proxy = Proxy([s.port for s in services], rng)
    client = Client(await proxy.start(), counts, args.models > 0)
    sessions: list[ClientSession] = []
    requested, done = 0, asyncio.Event()

    async def run_sessions() -> None:
        nonlocal requested
        while requested < args.characters or counts["kills"] < args.kills:  # there is something to kill until the end
            lengths = [rng.randrange(1000, 4000) for _ in range(TURNS)]
            requested += sum(lengths)
            session = ClientSession(rng.getrandbits(40), rng.randrange(len(models)))
            sessions.append(session)
            await client.run(session, lengths, random.Random(session.seed))

    started = time.monotonic()
    attacker = asyncio.create_task(attack(services, redis, args.kills, rng, done, counts))
    await asyncio.gather(*(run_sessions() for _ in range(args.streams)))
    done.set()
    await attacker
    seconds = time.monotonic() - started
    for service in services:
        service.kill()
    redis.remove()
    counts["connections dropped by the proxy"] = proxy.dropped
    return compare(sessions, counts, [model.network() for model in models], seconds)


def compare(sessions: list[ClientSession], counts: Counter[str], networks: list[Any], seconds: float) -> dict[str, Any]:
    """Compare every text with the one that a stepper of its model writes by itself, and count what happened."""
    steppers, changed = [choose(network, 1)[0] for network in networks], 0
    for session in sessions:
        stepper = steppers[session.model]
        text, codes = "", list[int]()  # and what of the text was generated, for the penalties
        for turn in session.turns:
            prompt = text + turn["prompt"]
            codes += prompt_codes(ALPHABET.encode(turn["prompt"])).tolist()
            generated = write(
                stepper, ALPHABET, prompt, turn["max_chars"], SAMPLING, session.seed, 256, logit_bias=LOGIT_BIAS,
                before=codes, automaton=FORMS.get(turn["form"]),
            )  # fmt: skip
            new = "".join(generated)
            text = prompt + new
            codes += ALPHABET.encode(new).tolist()
        changed += text != session.text
    return {
        "sessions": len(sessions),
        "characters": sum(len(s.text) for s in sessions),
        "seconds": round(seconds, 1),
        "finished": sum(s.finished for s in sessions),
        "left locked": sum(not s.unlocked for s in sessions),
        "texts changed": changed,
        **dict(sorted(counts.items())),
    }


def _off_by_one(folder: Path) -> Path:
    """The negative control: a sitecustomize that makes every saved state claim one character more than it has read."""
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"  # the site module runs before the path has it
        "import model.network.state as s\n"
        "_to = s.HiddenState.to_bytes\n"
        "def wrong(self):\n"
        "    from dataclasses import replace\n"
        "    return _to(replace(self, position=self.position + 1))\n"
        "s.HiddenState.to_bytes = wrong\n"
    )
    return folder


def main() -> int:
    """Return 0 if no text was changed, lost or left locked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--characters", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", type=int, default=0, help="models with names; 0: the default one alone")
    parser.add_argument("--negative-control", action="store_true")
    args = parser.parse_args()
    result = asyncio.run(run(args))
    for name, value in result.items():
        print(f"{name:<40}{value:>12}")
    whole = result["texts changed"] == 0 and result["left locked"] == 0 and result["finished"] == result["sessions"]
    print(json.dumps(result))
    return 0 if whole != args.negative_control else 1


if __name__ == "__main__":
    sys.exit(main())
