"""The service through HTTP beside the bare engine: streams, loads up to four times capacity, first characters.

    python -m bench.serve [--model 2x512] [--precision fp32] [--seconds 4] [--parts streams,loads,plain,many,lines]

A real service (gunicorn, Redis for the sessions) and its client share this machine's cores; the client is one light
process (bench/load.py), and the CPU time of both is printed. Bare is the same engine in this process, nobody reading.
Parts: 64 streams against bare, in turn; open Poisson loads at 0.5, 1, 2 and 4 times the capacity measured, in calls of
--chars characters; and the same closed load on the server of a course: Flask, nn.LSTM, one text at a time a thread
(bench/flask_baseline.py); one request for as many texts of one prompt as there are streams, and a list of 10,000 lines
scored, both against bare. A block is what the service says one takes, its target where nobody waits. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint
from model.config import WeightPrecision
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from service.engine.engine import Engine
from service.engine.observer import IterationStats, NullObserver
from service.engine.sequence import SequenceRequest
from tests.conftest import random_checkpoint
from tests.scrape import scraped
from tests.servers import ROOT, RedisServer, Service, eventually

TICKS = os.sysconf("SC_CLK_TCK")


class CharCounter(NullObserver):
    """Counts the characters that an engine has generated."""

    chars = 0

    def on_iteration(self, stats: IterationStats) -> None:
        """Add those of an iteration."""
        self.chars += stats.generated_chars


class Bare:
    """The engine alone, in this process, with texts that never end and that nobody reads."""

    def __init__(self, model: Checkpoint, streams: int, precision: WeightPrecision, block_s: float) -> None:
        """Start an engine with a slot for each stream."""
        stepper, self.stepper = choose(model.network(), streams, "cpu", precision)
        self.counter = CharCounter()
        self.engine = Engine(
            stepper, model.vocab, model.fingerprint, max_waiting=streams, block_s=block_s, observer=self.counter
        )
        self.streams = streams
        self.engine.start()

    def chars_per_s(self, seconds: float) -> float:
        """Return the rate of all its slots over these seconds."""
        feed = np.array([self.engine.vocab.start], np.int32)
        streams = [
            self.engine.submit(SequenceRequest(feed, 0, 10**9, SamplingParams(), seed)) for seed in range(self.streams)
        ]
        time.sleep(0.7)
        began, before = time.monotonic(), self.counter.chars
        time.sleep(seconds)
        rate = (self.counter.chars - before) / (time.monotonic() - began)
        for stream in streams:
            stream.close()
        eventually(lambda: self.engine.in_flight == 0)
        return rate


def load(port: int, **spec: Any) -> dict[str, Any]:
    """One load from a process of its own."""
    command = [sys.executable, "-m", "bench.load", json.dumps({"port": port, **spec})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that these processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / TICKS


def metrics(service: Service) -> dict[str, float]:
    """Return the values of /metrics by name."""
    return scraped(httpx.get(f"{service.url}/metrics").text)


def settled(service: Service) -> None:
    """Wait until no request is in flight."""
    eventually(lambda: service.client.get("/readyz").json()["in_flight"] == 0, within_s=60)


def streams(service: Service, bare: Bare, args: argparse.Namespace) -> dict[str, Any]:
    """Many streams at once against the bare engine, in turn, round after round."""
    ratios, rates, alone, client, server = [], [], [], [], []
    for _ in range(args.rounds):
        alone.append(bare.chars_per_s(args.seconds))
        before, began = cpu_s(service.workers()), time.monotonic()
        result = load(service.port, streams=args.streams, seconds=args.seconds, warm_s=0.7, chars=100_000, poll_s=0.2)
        server.append((cpu_s(service.workers()) - before) / (time.monotonic() - began))
        settled(service)
        rates.append(result["chars_per_s"])
        client.append(result["client_cpu"])
        ratios.append(rates[-1] / alone[-1])
        print(f"  {args.streams} streams {rates[-1]:,.0f} chars/s, bare {alone[-1]:,.0f}: {ratios[-1]:.3f}", flush=True)
    return {
        "bare_chars_per_s": round(statistics.median(alone)),
        "http_chars_per_s": round(statistics.median(rates)),
        "part_of_bare": round(statistics.median(ratios), 3),
        "client_cpu": round(statistics.median(client), 3),
        "server_cpu": round(statistics.median(server), 3),
    }


def loads(service: Service, args: argparse.Namespace) -> dict[str, Any]:
    """Poisson loads at multiples of the capacity that a closed load shows."""
    closed = load(
        service.port, streams=args.streams, seconds=2 * args.seconds, warm_s=1.5, chars=args.chars, poll_s=0.02
    )
    settled(service)
    capacity = closed["chars_per_s"] / args.chars
    print(f"  closed: {closed['chars_per_s']:,.0f} chars/s, {capacity:.1f} calls/s of {args.chars}", flush=True)
    rows: dict[str, Any] = {}
    for times in (0.5, 1.0, 2.0, 4.0):
        before, cpu, began = metrics(service), cpu_s(service.workers()), time.monotonic()
        result = load(
            service.port, rate=capacity * times, seconds=args.load_s, warm_s=3.0, chars=args.chars,
            poll_s=0.0 if times < 1 else 0.02,
        )  # fmt: skip
        result["server_cpu"] = (cpu_s(service.workers()) - cpu) / (time.monotonic() - began)
        settled(service)
        after = metrics(service)
        blocks = after["longhand_block_seconds_count"] - before["longhand_block_seconds_count"]
        result["block_ms"] = (
            1000 * (after["longhand_block_seconds_sum"] - before["longhand_block_seconds_sum"]) / blocks
        )
        rows[f"{times:g}x"] = result
        print(
            f"  {times:g}x: {result['chars_per_s']:,.0f} chars/s, first {result['first_ms']}, gaps {result['gap_ms']}, "
            f"{result['statuses']}, blocks of {result['block_ms']:.1f} ms, CPU of client {result['client_cpu']:.2f} "
            f"and service {result['server_cpu']:.2f}",
            flush=True,
        )
    peak = max(row["chars_per_s"] for row in rows.values())
    overload = rows["4x"]
    return {
        "capacity_calls_per_s": round(capacity, 2),
        "loads": rows,
        "goodput_at_4x_of_peak": round(overload["chars_per_s"] / max(peak, closed["chars_per_s"]), 3),
        "statuses_at_4x": overload["statuses"],
        "refused_without_retry_after": overload["refused_without_retry_after"],
        "refused_with_text": overload["refused_with_text"],
        "first_p99_in_blocks_at_half": round(rows["0.5x"]["first_ms"]["p99"] / args.block_ms, 2),
    }


def many(service: Service, bare: Bare, args: argparse.Namespace) -> dict[str, Any]:
    """One request for many texts of one prompt, against the bare engine, in turn."""
    ratios, rates = [], []
    for round_ in range(args.rounds):
        alone = bare.chars_per_s(args.seconds)
        chars = max(1000, int(alone * args.seconds / args.streams))
        began = time.monotonic()
        events = service.events(prompt="hello there ", n=args.streams, max_chars=chars, seed=round_)
        seconds = time.monotonic() - began
        generated = sum(len(e.data["text"]) for e in events if e.name == "message")
        assert generated == args.streams * chars, (generated, args.streams * chars)
        rates.append(generated / seconds)
        ratios.append(rates[-1] / alone)
        print(f"  n = {args.streams}: {rates[-1]:,.0f} chars/s, bare {alone:,.0f}: {ratios[-1]:.3f}", flush=True)
    return {"many_chars_per_s": round(statistics.median(rates)), "many_of_bare": round(statistics.median(ratios), 3)}


def lines(service: Service, bare: Bare, args: argparse.Namespace) -> dict[str, Any]:
    """A list of lines scored, against the bare engine, in turn."""
    rng, ratios, rates = random.Random(1), [], []
    texts = ["".join(rng.choices(bare.engine.vocab.characters, k=rng.randrange(20, 80))) for _ in range(args.lines)]
    for _ in range(args.rounds):
        alone = bare.chars_per_s(args.seconds)
        began = time.monotonic()
        answer = service.client.post("/score", json={"text": texts}, timeout=600)
        seconds = time.monotonic() - began
        assert answer.json()["characters"] == sum(map(len, texts)), answer.text[:200]
        rates.append(answer.json()["characters"] / seconds)
        ratios.append(rates[-1] / alone)
        print(f"  {args.lines:,} lines: {rates[-1]:,.0f} chars/s, bare {alone:,.0f}: {ratios[-1]:.3f}", flush=True)
    return {"lines_chars_per_s": round(statistics.median(rates)), "lines_of_bare": round(statistics.median(ratios), 3)}


def plain(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The closed load on the course's server."""
    from bench.flask_baseline import PlainService

    with PlainService(folder) as service:
        result = load(
            service.port, streams=args.streams, seconds=2 * args.seconds, warm_s=1.5, chars=100_000, poll_s=0.2
        )
    print(f"  Flask and nn.LSTM: {result['chars_per_s']:,.0f} chars/s", flush=True)
    return {"plain_chars_per_s": round(result["chars_per_s"])}


def main() -> None:
    """Run the measurements that were chosen, and print them; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2x512", help="layers x hidden units")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--chars", type=int, default=1000, help="of a call of the Poisson loads")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--lines", type=int, default=10_000, help="that are scored")
    parser.add_argument("--load-s", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block-ms", type=float, default=20.0)
    parser.add_argument("--parts", default="streams,loads,plain,many,lines")
    args = parser.parse_args()
    layers, hidden = (int(n) for n in args.model.split("x"))
    model, parts = random_checkpoint(n_layers=layers, n_hidden=hidden), args.parts.split(",")
    result: dict[str, Any] = {"model": args.model, "precision": args.precision, "streams": args.streams}
    with tempfile.TemporaryDirectory() as folder:
        registry.promote(model.save(Path(folder)))
        redis = RedisServer()
        redis.start()
        environment = {"CHECKPOINT_DIR": folder, "REDIS_URL": redis.url, "PRECISION": args.precision}
        environment |= {"SLOTS": str(args.streams), "MAX_WAITING": str(args.streams), "MAX_CHARS": str(10**6)}
        try:
            with Service(**environment, BLOCK_MS=str(args.block_ms), DEVICE="cpu") as service:
                if {"streams", "many", "lines"} & set(parts):
                    bare = Bare(model, args.streams, args.precision, args.block_ms / 1000)
                    for name, part in (("streams", streams), ("many", many), ("lines", lines)):
                        result |= part(service, bare, args) if name in parts else {}
                    bare.engine.stop()
                if "loads" in parts:
                    result |= loads(service, args)
            if "plain" in parts:
                result |= plain(Path(folder), args)
        finally:
            redis.remove()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
