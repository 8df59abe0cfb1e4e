"""What a session costs: bytes in Redis, and the time to go on with it, for any length of its text.

    python -m bench.sessions                     # 10^4 and 10^5 sessions; texts of up to 10^6 characters
    python -m bench.sessions --million           # 10^6 as well: needs 12 GB for Redis
    python -m bench.sessions --counts 10000 --history 100,10000

Sessions of a 2 x 512 model, with a full recent_text of text, go through the service's own store into a Redis without
persistence; their floats are random, so nothing is saved by their being alike. Then, with all of them there, one
character is asked for over HTTP, in turn of a new session and of one after each length of text, which was really read;
"re-reading" is the time that the stepper took to read it, alone on this machine: what a resume costs without the state.
Last, a prompt of 100,000 characters is sent twice. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.stepper.choose import choose
from model.stepper.generate import one_row_block
from service.store.redis import RedisSessions
from service.store.sessions import Session, new_session_id
from tests.conftest import ALPHABET, random_checkpoint
from tests.servers import RedisServer, Service, read_events

TTL_S = 86_400
TURN_TTL_S = 900
RECENT_TEXT_CHARS = 1024
"""The defaults of the service."""
BLOCK = 4096  # characters read at a time


def main() -> None:
    """Run all measurements, and print them; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=_numbers, default=[10**4, 10**5])
    parser.add_argument("--million", action="store_true", help="10^6 sessions too")
    parser.add_argument("--history", type=_numbers, default=[10**n for n in range(2, 7)], help="lengths of text")
    parser.add_argument("--requests", type=int, default=300, help="timed requests of each kind")
    args = parser.parse_args()
    model = random_checkpoint(n_layers=2, n_hidden=512)
    server = RedisServer("--appendonly", "no", "--save", "")
    server.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            registry.promote(model.save(Path(folder)))
            histories = dict(zip(args.history, read(model, args.history), strict=True))
            client = redis.Redis.from_url(server.url)
            sizes = fill(client, model, args.counts + [10**6] * args.million)
            with Service(CHECKPOINT_DIR=folder, REDIS_URL=server.url) as service:
                waits = resume(service, RedisSessions(client, TTL_S, TURN_TTL_S), histories, args.requests)
                prompts = twice(service)
    finally:
        server.remove()
    print(json.dumps({"sessions": sizes, "resume": waits, "long_prompt": prompts}))


def _numbers(text: str) -> list[int]:
    return [int(float(n)) for n in text.split(",")]


def read(model: Checkpoint, lengths: list[int]) -> Iterator[tuple[Session, float]]:
    """The session after each of these lengths of one random text, and the seconds that reading so far took."""
    stepper, why = choose(model.network(), 1)
    print(f"{model.config.n_layers} x {model.config.n_hidden}, {why}")
    rng = np.random.default_rng(1)
    ids = np.concatenate([[ALPHABET.start], rng.integers(0, len(ALPHABET), lengths[-1])]).astype(np.int32)
    done, took = 0, 0.0
    stepper.write(0, None)
    for length in lengths:
        while done < length:  # all but the last, which is the state's next_input id
            steps = min(BLOCK, length - done)
            block = one_row_block(0, ids[done : done + steps], steps, np.zeros((steps, 1)), SamplingParams())
            started = time.perf_counter()
            stepper.run(block)
            took += time.perf_counter() - started
            done += steps
        state = HiddenState(stepper.read(0), int(ids[length]), length, model.fingerprint, stepper.numerics)
        yield Session(state, seed=1, recent_text=ALPHABET.decode(ids[1 : length + 1])[-RECENT_TEXT_CHARS:]), took


def fill(client: Any, model: Checkpoint, counts: list[int]) -> list[dict[str, Any]]:
    """Store sessions until there are as many as each count; Redis's own account of its memory after each."""
    store, rng, rows, stored = RedisSessions(client, TTL_S, TURN_TTL_S), np.random.default_rng(2), [], 0
    empty = client.info("memory")["used_memory"]
    fingerprint = model.fingerprint  # a digest of all weights each time
    for count in counts:
        started = time.perf_counter()
        for _ in range(count - stored):
            values = rng.standard_normal((2, model.config.n_layers, model.config.n_hidden), dtype=np.float32)
            recent_text = ALPHABET.decode(rng.integers(0, len(ALPHABET), RECENT_TEXT_CHARS).astype(np.int32))
            state = HiddenState(values, 1, 10**6, fingerprint, "cpu-f32-v1")
            session = Session(state, seed=secrets.randbits(53), recent_text=recent_text)
            store.create(new_session_id(), session)
        stored = count
        memory = client.info("memory")
        row = {
            "sessions": count,
            "bytes_each": round((memory["used_memory"] - empty) / count),
            "record_bytes": len(session.to_bytes()),
            "redis_gb": round(memory["used_memory"] / 1e9, 3),
            "resident_gb": round(memory["used_memory_rss"] / 1e9, 3),
            "seconds": round(time.perf_counter() - started, 1),
        }
        print("  ".join(f"{name} {value:,}" for name, value in row.items()), flush=True)
        rows.append(row)
    return rows


def resume(
    service: Service, store: RedisSessions, histories: dict[int, tuple[Session, float]], requests: int
) -> list[dict[str, Any]]:
    """Milliseconds of a request for one character: of a new session, and of one after each length of text."""
    waits: dict[int, list[float]] = {length: [] for length in (0, *histories)}
    kept = httpx.Client(base_url=service.url, timeout=60)
    for turn in range(requests + 20):  # the first ones warm it up
        for length, seen in waits.items():
            body: dict[str, Any] = {"max_chars": 1}
            if length:
                body["session_id"] = new_session_id()
                store.create(body["session_id"], histories[length][0])
            started = time.perf_counter()
            response = kept.post("/generate", json=body)
            took = time.perf_counter() - started
            assert response.status_code == 200, response.text
            assert response.json()["position"] == length + 1
            if turn >= 20:
                seen.append(took * 1e3)
    rows = []
    new = float(np.median(waits[0]))
    for length, ms in waits.items():
        p50, p99 = np.percentile(ms, [50, 99])
        row = {"history": length, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "over_new_ms": round(p50 - new, 2)}
        if length:
            row["re_reading_ms"] = round(histories[length][1] * 1e3, 1)
        print("  ".join(f"{name} {value:,}" for name, value in row.items()), flush=True)
        rows.append(row)
    return rows


def twice(service: Service) -> dict[str, Any]:
    """Seconds to the first character after a prompt of 100,000, and after the same prompt again."""
    ids = np.random.default_rng(3).integers(0, len(ALPHABET), 100_000).astype(np.int32)
    body = {"prompt": ALPHABET.decode(ids), "max_chars": 200, "seed": 1, "stream": True}
    waits, texts, reused = [], [], []
    for _ in range(2):
        started, text, first = time.perf_counter(), "", 0.0
        with httpx.stream("POST", f"{service.url}/generate", json=body, timeout=600) as response:
            assert response.status_code == 200, response.read()
            for event in read_events(response):
                if event.name == "message":
                    first = first or time.perf_counter() - started
                    text += event.data["text"]
                elif event.name == "done":
                    reused.append(event.data["usage"]["reused_chars"])
        waits.append(first)
        texts.append(text)
    row = {
        "first_s": round(waits[0], 3),
        "again_s": round(waits[1], 4),
        "ratio": round(waits[1] / waits[0], 5),
        "reused_chars": reused[1],
        "same_text": texts[0] == texts[1] and len(texts[0]) == 200,
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


if __name__ == "__main__":
    main()
