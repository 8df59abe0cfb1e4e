"""Benchmarks of training: a race against nanoGPT's CPU recipe, the speed of a step, its precision, two processes.

    python -m bench.train race TEXT [--nanogpt CHECKOUT]   the time to nanoGPT's final loss, as a part of its time
    python -m bench.train speed                            a step of the standard preset against the machine's sgemm
    python -m bench.train precision                        steps in bfloat16 beside steps in float32
    python -m bench.train distributed TEXT                 torchrun with two processes against one, same characters

The last line of each is JSON. A picture of the race goes to --picture.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.gpt import BLOCK, Curve, from_checkout, reimplementation
from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.config import PRESETS, ModelConfig, TrainConfig
from model.evaluation.protocols import loss
from model.native.library import choose_instruction_set, library_path, load_library
from model.network.char_rnn import CharRNN
from model.text.corpus import Corpus, Streams
from model.training.distributed import Distributed
from model.training.learner import Learner, choose_workers
from model.training.loop import fit
from model.training.run_folder import Progress

_SHAPE = ("n_hidden", "n_layers", "n_embed")
_SPRINT: dict[str, Any] = {"n_hidden": 160, "seq_length": 24, "lr": 6e-3, "validations": 6}
"""The best settings known for a quarter of a minute: docs/decisions."""
_STEPS = 10  # timed between two measurements of sgemm


def race(args: argparse.Namespace) -> dict[str, Any]:
    """Train nanoGPT to its end, then Longhand with a sixth of that time as its budget; both measured by crops of 64."""
    corpus = Corpus.from_file(args.text, TrainConfig())
    nanogpt = from_checkout(args.nanogpt, corpus) if args.nanogpt else reimplementation(corpus)
    longhand = _train_longhand(corpus, nanogpt.seconds / 6)
    _draw([nanogpt, longhand], args.picture)
    goal = nanogpt.points[-1][1]
    reached = next((s for s, nats in longhand.points if nats <= goal), None)
    for curve in (nanogpt, longhand):
        print(f"{curve.name}: " + "  ".join(f"{s:.0f} s {nats:.3f}" for s, nats in curve.points))
    return {
        "opponent": nanogpt.name,
        "opponent_seconds": round(nanogpt.seconds, 1),
        "opponent_loss": round(goal, 4),
        "longhand_seconds_to_that_loss": None if reached is None else round(reached, 1),
        "longhand_loss": round(longhand.points[-1][1], 4),
        "part_of_the_time": None if reached is None else round(reached / nanogpt.seconds, 3),
    }


def _train_longhand(corpus: Corpus, seconds: float) -> Curve:
    config = TrainConfig(minutes=seconds / 60, **{k: v for k, v in _SPRINT.items() if k not in _SHAPE})
    model = ModelConfig(len(corpus.vocab), **{k: v for k, v in _SPRINT.items() if k in _SHAPE})
    networks: list[tuple[float, CharRNN]] = []

    def collect(progress: Progress) -> None:
        if progress.val_loss is not None and progress.best_checkpoint is not None:
            networks.append((progress.elapsed_s, load(progress.best_checkpoint).network()))

    with tempfile.TemporaryDirectory() as folder:
        fit(corpus, model, config, Path(folder), on_progress=collect)
    points = [(at, loss(network, corpus.val, "windowed", crop=BLOCK)) for at, network in networks]
    return Curve("Longhand, 1 x 160, windows of 24", points, seconds)


def _draw(curves: list[Curve], picture: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(*zip(*curve.points, strict=True), "o-", markersize=3, label=curve.name)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation, nats per character, crops of 64")
    axes.legend()
    axes.grid(alpha=0.3)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the multiply-add rate of a whole step with sgemm's, in alternation, and time the parts of the step."""
    model, config, streams = _random_training(args.preset)
    workers = choose_workers(config, "cpu", 1)
    learner = Learner(model, config, "cpu", Distributed(), workers)
    rates, steps = [], []
    with learner.worker_threads():
        learner.step(streams, 1e-3)
        for _ in range(args.repeats):
            torch.set_num_threads(max(workers, torch.get_num_threads()))
            rates.append(_sgemm())
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
            learner.step(streams, 1e-3)  # not timed: sgemm's threads still spin for a while
            steps += [_seconds(lambda: learner.step(streams, 1e-3)) for _ in range(_STEPS)]
        parts = _parts(learner, streams)
    flops = 3 * 2 * config.batch_size * config.seq_length * _weights(model)
    achieved = [flops / s for s in steps]
    ratio = statistics.median(a / rates[i // _STEPS] for i, a in enumerate(achieved))
    characters = config.batch_size * config.seq_length
    print(f"{args.preset}: {workers} workers, {characters / statistics.median(steps):,.0f} chars/s")
    for name, seconds in parts.items():
        print(f"  {name:<32}{1000 * seconds:8.1f} ms")
    return {
        "preset": args.preset,
        "sgemm_gflops": round(statistics.median(rates) / 1e9, 1),
        "step_gflops": round(statistics.median(achieved) / 1e9, 1),
        "part_of_sgemm": round(ratio, 3),
        "chars_per_s": round(characters / statistics.median(steps)),
        "parts_ms": {k: round(1000 * v, 1) for k, v in parts.items()},
    }


def precision(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the characters a second of steps in bfloat16 and in float32, in alternation.

    By the clock and by the processor time of all threads; the second is less disturbed by other programs.
    """
    model, config, streams = _random_training(args.preset)
    workers = choose_workers(config, "cpu", 1)
    learners = {
        name: Learner(model, replace(config, precision=name), "cpu", Distributed(), workers)
        for name in ("fp32", "bf16")
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in learners}
    for _ in range(args.repeats):
        for name, learner in learners.items():
            with learner.worker_threads():
                learner.step(streams, 1e-3)  # not timed: the caches hold the other one's weights
                for _ in range(_STEPS):
                    began = time.process_time()
                    elapsed = _seconds(lambda learner=learner: learner.step(streams, 1e-3))  # type: ignore[misc]
                    seconds[name].append((elapsed, time.process_time() - began))
    characters = config.batch_size * config.seq_length
    rates = {
        f"{name}_{kind}_{clock}": round(characters / statistic(times[i] for times in seconds[name]))
        for name in learners
        for i, clock in enumerate(("elapsed", "processor"))
        for kind, statistic in (("best", min), ("median", statistics.median))
    }
    ratios = {
        f"ratio_{kind}_{clock}": round(rates[f"bf16_{kind}_{clock}"] / rates[f"fp32_{kind}_{clock}"], 3)
        for clock in ("elapsed", "processor")
        for kind in ("best", "median")
    }
    instruction_set = choose_instruction_set(load_library(library_path()))
    print(f"{args.preset}: {workers} workers, instruction set {instruction_set}; characters a second")
    return {"preset": args.preset, **rates, **ratios}


def _random_training(preset_name: str) -> tuple[ModelConfig, TrainConfig, Streams]:
    """Return a preset's network and training, and streams of random characters."""
    preset = PRESETS[preset_name]
    config = TrainConfig(**{k: v for k, v in preset.items() if k not in _SHAPE})
    model = ModelConfig(65, **{k: v for k, v in preset.items() if k in _SHAPE})
    text = torch.randint(65, (1_000_000,), dtype=torch.uint8).numpy()
    return model, config, Streams(text, config.batch_size, config.seq_length)


def _weights(model: ModelConfig) -> int:
    """Return the multiply-adds per character: the number of weights in all products."""
    inputs = [model.n_embed] + [model.n_hidden] * (model.n_layers - 1)
    return sum(4 * model.n_hidden * (n + model.n_hidden) for n in inputs) + model.n_hidden * model.vocab_size


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _sgemm() -> float:
    """Return the flop/s of a matrix product that is large enough to reach the machine's best rate."""
    n = 1536
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    torch.mm(a, b, out=out)
    return 2 * n**3 / min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(3))


def _parts(learner: Learner, streams: Streams) -> dict[str, float]:
    """Time the two parts of a step: the shards' passes, and what follows them in one thread."""
    passes, updates = [], []
    for _ in range(3):
        began = time.perf_counter()
        parts = [streams.window(0, rows) for rows in learner._rows]
        shards = learner._map(lambda i, parts=parts: learner._shard_gradients(i, *parts[i]))  # type: ignore[misc]
        passes.append(time.perf_counter() - began)
        updates.append(_seconds(lambda shards=shards: learner._apply_gradients(shards)))  # type: ignore[misc]
    return {"forward and backward": min(passes), "sum, clip, AdamW, moving average": min(updates)}


def distributed(args: argparse.Namespace) -> dict[str, Any]:
    """Train with two processes under torchrun and with one, on the same characters: losses agree within 0.03 nats."""
    with tempfile.TemporaryDirectory() as folder:
        losses = {}
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        for name, launch in (("one", []), ("two", launcher)):
            out = Path(folder) / name
            options = ["--out", str(out), "--steps", str(args.steps), "--preset", "quick"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            subprocess.run(
                [sys.executable, *launch, "-m", "model", "train", str(args.text), *options], check=True, env=environment
            )
            path = promoted_path(out)
            assert path is not None
            losses[name] = load(path).val_loss
    return {**losses, "difference": round(abs(losses["one"] - losses["two"]), 5), "steps": args.steps}


def main() -> None:
    """Run one benchmark and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    racing = commands.add_parser("race")
    racing.add_argument("text", type=Path)
    racing.add_argument(
        "--nanogpt", type=Path, help="a checkout of nanoGPT; without it, our reimplementation of the recipe"
    )
    racing.add_argument("--picture", type=Path, default=Path("race.svg"))
    racing.set_defaults(run=race)
    step = commands.add_parser("speed")
    step.add_argument("--preset", choices=PRESETS, default="standard")
    step.add_argument("--repeats", type=int, default=7)
    step.set_defaults(run=speed)
    beside = commands.add_parser("precision")
    beside.add_argument("--preset", choices=PRESETS, default="best")
    beside.add_argument("--repeats", type=int, default=5)
    beside.set_defaults(run=precision)
    both = commands.add_parser("distributed")
    both.add_argument("text", type=Path)
    both.add_argument("--steps", type=int, default=600)
    both.set_defaults(run=distributed)
    args = parser.parse_args()
    print(json.dumps(args.run(args)))


if __name__ == "__main__":
    main()
