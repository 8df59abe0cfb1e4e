"""What others notice: a long prompt beside 32 streams, two clients' scores beside one, and 1,000 clients that leave.

    python -m bench.fairness [--model 2x512] [--seconds 8] [--waves 16]

The gaps between a stream's events are taken without the prompt, then with it, from its sending to its first character
or the end. The rate of one stream is taken in turns without and beside two clients that have lists of 2,000 lines, and
texts of 48,000 characters, scored without a pause. Leavers come in waves of 64 that hang up at once; how long until the
last slot is free is taken for each wave. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.serve import load, settled
from model.checkpoints import registry
from tests.conftest import ALPHABET, random_checkpoint
from tests.disconnecting_clients import resources, wave
from tests.servers import RedisServer, Service, read_events


def prompt(service: Service, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the gaps of streams without and beside one very long prompt."""
    spec = {"streams": args.streams, "seconds": args.seconds, "warm_s": 1.5, "chars": 1_000_000}
    baseline = load(service.port, **spec)
    settled(service)
    read: dict[str, float] = {}

    def read_a_long_prompt() -> None:
        time.sleep(2.0)
        text = "".join(random.Random(1).choices(ALPHABET.characters, k=args.prompt))
        began = time.monotonic()
        with httpx.stream("POST", f"{service.url}/generate", timeout=600,
                          json={"prompt": text, "max_chars": 20, "stream": True}) as response:  # fmt: skip
            read["status"] = response.status_code
            for line in response.iter_lines():
                if line.startswith("id: "):
                    read["first_s"] = round(time.monotonic() - began, 1)
                    break

    thread = threading.Thread(target=read_a_long_prompt)
    thread.start()
    beside = load(service.port, **spec)
    thread.join()
    settled(service)
    ratio = beside["gap_ms"]["max"] / baseline["gap_ms"]["p99"]
    print(f"  gaps {baseline['gap_ms']} ms, beside the prompt {beside['gap_ms']} ms: {ratio:.2f} of the baseline p99")
    return {
        "baseline_gap_ms": baseline["gap_ms"],
        "gap_ms_beside_prompt": beside["gap_ms"],
        "longest_gap_of_baseline_p99": round(ratio, 2),
        "baseline_longest_of_baseline_p99": round(baseline["gap_ms"]["max"] / baseline["gap_ms"]["p99"], 2),
        "chars_per_s": [round(baseline["chars_per_s"]), round(beside["chars_per_s"])],
        "prompt_status": read["status"],
        "prompt_first_char_s": read["first_s"],
    }


def scores(service: Service, text: str | list[str], name: str, turns: int = 5) -> dict[str, Any]:
    """Measure the characters a second of a stream, in turns without and beside two clients that have `text` scored."""
    over, beside = threading.Event(), threading.Event()
    n_chars = 0

    def read() -> None:
        nonlocal n_chars
        while not over.is_set():
            body = {"max_chars": 10**6, "stream": True}
            with httpx.stream("POST", f"{service.url}/generate", timeout=60, json=body) as response:
                for event in read_events(response):
                    n_chars += len(event.data.get("text", ""))
                    if over.is_set():
                        return

    def score() -> None:
        with httpx.Client(base_url=service.url, timeout=600) as client:
            while not over.is_set():
                if beside.wait(0.1):
                    client.post("/score", json={"text": text}).raise_for_status()

    rates: dict[bool, list[float]] = {False: [], True: []}
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(read), pool.submit(score), pool.submit(score)]
        for turn in range(2 * turns):
            (beside.set if turn % 2 else beside.clear)()
            time.sleep(0.7)  # a score that runs on ends
            start, before = time.monotonic(), n_chars
            time.sleep(1)
            rates[bool(turn % 2)].append((n_chars - before) / (time.monotonic() - start))
        over.set()
        beside.set()
        for future in running:
            future.result()
    settled(service)
    without, with_scores = (round(statistics.median(rates[key])) for key in (False, True))
    ratio = round(with_scores / without, 2)
    print(
        f"  a stream: {without} characters/s, beside two clients' scores of {name} {with_scores}: {ratio}", flush=True
    )
    return {"stream_chars_per_s": without, f"beside_{name}": with_scores, f"beside_{name}_ratio": ratio}


def some_lines(n: int = 2000) -> list[str]:
    """Return lines that begin differently."""
    rng = random.Random(2)
    return ["".join(rng.choices(ALPHABET.characters, k=60)) for _ in range(n)]


def leavers(service: Service, args: argparse.Namespace) -> dict[str, Any]:
    """Measure how soon slots are free after waves of clients hang up, and what stays allocated."""
    # Threads and connections to Redis are made when none is free, up to a limit: after this, one more is a leak.
    with ThreadPoolExecutor(2 * args.slots) as clients:
        statuses = list(clients.map(lambda _: _one(service), range(2 * args.slots)))
    assert set(statuses) == {200}, statuses
    for _ in range(4):
        wave(service, args.slots)
    settled(service)
    before = resources(service)
    waits = [wave(service, args.slots) for _ in range(args.waves)]
    time.sleep(1.0)
    print(
        f"  {args.waves} waves of {args.slots}: free after {max(waits):.3f} s at most; {before} -> {resources(service)}"
    )
    return {
        "left": args.waves * args.slots,
        "free_after_s_at_most": round(max(waits), 3),
        "resources_before": before,
        "resources_after": resources(service),
    }


def _one(service: Service) -> int:
    return httpx.post(f"{service.url}/generate", json={"max_chars": 2000}, timeout=60).status_code


def main() -> None:
    """Run the measurements on a service of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2x512", help="layers x hidden units")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--scores-only", action="store_true")
    parser.add_argument("--waves", type=int, default=16)
    args = parser.parse_args()
    layers, hidden = (int(n) for n in args.model.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        registry.promote(random_checkpoint(n_layers=layers, n_hidden=hidden).save(Path(folder)))
        redis = RedisServer()
        redis.start()
        environment = {
            "CHECKPOINT_DIR": folder,
            "REDIS_URL": redis.url,
            "MAX_CHARS": str(10**6),
            "MAX_PROMPT_CHARS": str(10**6),
        }
        try:
            with Service(**environment, SLOTS=str(args.slots), MAX_WAITING="64", DEVICE="cpu") as service:
                result: dict[str, Any] = {"model": args.model}
                if not args.scores_only:
                    result |= prompt(service, args)
                result |= scores(service, some_lines(), "lists") | scores(service, "hello there " * 4000, "texts")
                if not args.scores_only:
                    result |= leavers(service, args)
        finally:
            redis.remove()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
