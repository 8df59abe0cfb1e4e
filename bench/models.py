"""Many models by name on one worker: errors, memory against the limit, throughput, first characters cold and warm.

    python -m bench.models                                    # 1,000 models, 200 requests a second for 5 minutes
    python -m bench.models --models 100 --memory-mb 40 --rate 20 --seconds 20
    python -m bench.models --precision int8                   # what `auto` takes for nearly every trained checkpoint

The models are made by perturbation from three that are trained for --steps on the default text, 1 x 256, 2 x 256 and
2 x 512, in the shares 7, 2, 1 of ten, and are published: promoted through the API, which keeps their packed forms.
The load names them by Zipf's law. Throughput is that of closed loads of --streams texts at a time, on the default model
alone and on all models, in the same run; a text's CPU time is that of the worker. A cold first character is that of a
model that no request named before, one at a time, while the open load runs; a warm one is that of the ten most
frequent models, which have four in ten requests and stay loaded. Memory is the worker's resident memory beyond what it
was before the first model was loaded. The last line is JSON. A service and its client share this machine's cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.load import quantiles
from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint, load
from model.checkpoints.names import store_folder
from model.config import ModelConfig, TrainConfig
from model.text.corpus import Corpus
from model.text.default_text import default_text
from model.training.loop import fit
from tests.servers import ROOT, RedisServer, Service

SHAPES = ((1, 256),) * 7 + ((2, 256),) * 2 + ((2, 512),)


def main() -> None:
    """Make the models, run the loads, print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--cold", type=int, default=50, help="models that get one request each, beside the others")
    parser.add_argument("--memory-mb", type=int, default=300, help="MODELS_MEMORY_MB")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--streams", type=int, default=16, help="of the closed loads")
    parser.add_argument("--chars", type=int, default=20, help="of a text: a name, a label, a command")
    parser.add_argument("--steps", type=int, default=300, help="of the training of the three models")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        redis = RedisServer()
        redis.start()
        settings = {"CHECKPOINT_DIR": folder, "REDIS_URL": redis.url, "MODELS_MEMORY_MB": str(args.memory_mb)}
        try:
            ids = make_models(root, args.models + args.cold, args.steps)
            with Service(**settings, SLOTS="64", MAX_WAITING="256", PRECISION=args.precision) as service:
                publish(service, ids)
                print(json.dumps(measure(service, args)))
        finally:
            redis.remove()


def make_models(root: Path, n: int, steps: int) -> list[str]:
    """Save a default model and so many with names; return the ids of the latter."""
    config = TrainConfig(steps=steps, validations=1)
    corpus = Corpus.from_text(default_text(), config)
    shapes = {}
    for n_layers, n_hidden in sorted(set(SHAPES)):
        model = ModelConfig(len(corpus.vocab), n_hidden, n_layers)
        path = fit(corpus, model, config, root / "trained")
        shapes[n_layers, n_hidden] = load(path)
        print(f"trained {n_layers} x {n_hidden}: {path.name}", flush=True)
    torch.manual_seed(0)
    registry.promote(shapes[1, 256].save(root))
    ids = []
    for i in range(n):
        checkpoint = perturbed(shapes[SHAPES[i % len(SHAPES)]])
        checkpoint.save(store_folder(root, f"m{i:04}"))
        ids.append(checkpoint.fingerprint)
    return ids


def perturbed(checkpoint: Checkpoint) -> Checkpoint:
    """Return the model with other weights, close to its own, and without the text that its trainer recorded."""
    weights = {name: w * (1 + 0.01 * torch.randn_like(w)) for name, w in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights, self_test="")


def publish(service: Service, ids: list[str]) -> None:
    """Promote each model."""
    for i, model_id in enumerate(ids):
        answer = service.client.post(f"/models/{model_id}/promote", json={"model": f"m{i:04}"})
        assert answer.status_code == 200, answer.text


def measure(service: Service, args: argparse.Namespace) -> dict[str, Any]:
    """Run the closed loads, then the open one with cold requests beside it."""
    (worker,) = service.workers()
    common = {"port": service.port, "chars": args.chars, "warm_s": 2}
    closed = {**common, "streams": args.streams, "seconds": max(5.0, args.seconds / 10)}
    one, one_cpu_ms = with_cpu_time(worker, closed)
    before = resident_mb(worker)
    many, many_cpu_ms = with_cpu_time(worker, {**closed, "models": args.models})
    loads_before = metric(service, "longhand_model_load_seconds_count")
    open_load = start({**common, "models": args.models, "rate": args.rate, "seconds": args.seconds})
    cold, cold_statuses, peak = [], Counter[int](), resident_mb(worker)
    names = [f"m{args.models + i:04}" for i in range(args.cold)]
    pause = args.seconds / (args.cold + 1)
    while open_load.poll() is None:
        if names:
            began = time.monotonic()
            answer = service.client.post("/generate", json={"model": names.pop(), "max_chars": 1})
            cold_statuses[answer.status_code] += 1
            if answer.status_code == 200:
                cold.append(time.monotonic() - began)
        peak = max(peak, resident_mb(worker))
        time.sleep(min(pause, 0.5) if not names else pause)
    result = json.loads(open_load.communicate()[0])
    loads = metric(service, "longhand_model_load_seconds_count") - loads_before
    block_ms = 20.0
    return {
        "models": args.models,
        "open": {name: result[name] for name in ("calls", "statuses", "whole", "chars_per_s", "first_ms", "gap_ms")},
        "errors": sum(n for status, n in result["statuses"].items() if status != "200"),
        "cold_first_ms": quantiles(cold),
        "cold_statuses": dict(cold_statuses),
        "warm_first_in_blocks": {name: ms / block_ms for name, ms in result["popular_first_ms"].items()},
        "chars_per_s": {"one": one["chars_per_s"], "many": many["chars_per_s"]},
        "closed_statuses": {"one": one["statuses"], "many": many["statuses"]},
        "share": many["chars_per_s"] / one["chars_per_s"],
        "cpu_ms_per_text": {"one": one_cpu_ms, "many": many_cpu_ms},
        "loads_per_text": loads / max(1, result["calls"]),
        "models_loaded": metric(service, "longhand_models_loaded"),
        "memory_mb": {"limit": args.memory_mb, "before": before, "peak_beyond": peak - before},
    }


def run(load: dict[str, Any]) -> dict[str, Any]:
    """Produce a load to its end."""
    result: dict[str, Any] = json.loads(start(load).communicate()[0])
    return result


def with_cpu_time(worker: int, load: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Produce a load to its end; also return the worker's CPU time for each text, in milliseconds."""
    began = cpu_s(worker)
    result = run(load)
    return result, 1000 * (cpu_s(worker) - began) / max(1, result["whole"])


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def metric(service: Service, name: str) -> float:
    """Return a value of the service's metrics."""
    lines = service.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def start(load: dict[str, Any]) -> subprocess.Popen[str]:
    """Start the process that produces a load."""
    load = {**load, "seed": random.Random(7).getrandbits(20)}
    command = [sys.executable, "-m", "bench.load", json.dumps(load)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    main()
