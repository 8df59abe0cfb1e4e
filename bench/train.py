"""Training, side by side on one machine: a race against nanoGPT's CPU recipe, the speed of a step, two processes.

    python -m bench.train race TEXT [--nanogpt CHECKOUT]   its final loss: how much of its time do we need for it?
    python -m bench.train speed                            a step of the standard preset against the machine's sgemm
    python -m bench.train ranks TEXT                       torchrun with two processes against one, same characters

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
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from bench.gpt import BLOCK, Curve, from_checkout, restated
from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.config import PRESETS, ModelConfig, TrainConfig
from model.evaluation import protocols
from model.network.char_rnn import CharRNN
from model.text.corpus import Corpus, Streams
from model.training.distributed import Distributed
from model.training.learner import Learner, workers_that_fit
from model.training.loop import fit
from model.training.progress import Progress

_SHAPE = ("n_hidden", "n_layers", "n_embed")
_SPRINT: dict[str, Any] = {"n_hidden": 160, "seq_length": 24, "lr": 6e-3, "validations": 6}
"""What does best in a quarter of a minute: docs/decisions."""
_STEPS = 10  # of ours to one look at sgemm


def race(args: argparse.Namespace) -> dict[str, Any]:
    """Theirs to its end; then ours with a sixth of that time as its whole budget. Both measured by crops of 64."""
    corpus = Corpus.from_file(args.text, TrainConfig())
    theirs = from_checkout(args.nanogpt, corpus) if args.nanogpt else restated(corpus)
    ours = _ours(corpus, theirs.seconds / 6)
    _draw([theirs, ours], args.picture)
    goal = theirs.points[-1][1]
    reached = next((s for s, nats in ours.points if nats <= goal), None)
    for curve in (theirs, ours):
        print(f"{curve.name}: " + "  ".join(f"{s:.0f} s {nats:.3f}" for s, nats in curve.points))
    return {
        "theirs": theirs.name,
        "their_seconds": round(theirs.seconds, 1),
        "their_loss": round(goal, 4),
        "our_seconds": None if reached is None else round(reached, 1),
        "our_loss": round(ours.points[-1][1], 4),
        "part_of_their_time": None if reached is None else round(reached / theirs.seconds, 3),
    }


def _ours(corpus: Corpus, seconds: float) -> Curve:
    config = TrainConfig(minutes=seconds / 60, **{k: v for k, v in _SPRINT.items() if k not in _SHAPE})
    model = ModelConfig(len(corpus.vocab), **{k: v for k, v in _SPRINT.items() if k in _SHAPE})
    kept: list[tuple[float, CharRNN]] = []

    def watch(progress: Progress) -> None:
        if progress.val_loss is not None and progress.best_path is not None:
            kept.append((progress.elapsed_s, load(progress.best_path).network()))

    with tempfile.TemporaryDirectory() as folder:
        fit(corpus, model, config, Path(folder), watch=watch)
    points = [(at, protocols.loss(network, corpus.val, "a", crop=BLOCK)) for at, network in kept]
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
    """The rate of a whole step's products against sgemm's, alternating, and what each part of the step takes."""
    preset = PRESETS[args.preset]
    config = TrainConfig(**{k: v for k, v in preset.items() if k not in _SHAPE})
    model = ModelConfig(65, **{k: v for k, v in preset.items() if k in _SHAPE})
    workers = workers_that_fit(config, "cpu", 1)
    text = torch.randint(65, (1_000_000,), dtype=torch.uint8).numpy()
    streams = Streams(text, config.batch_size, config.seq_length)
    learner = Learner(model, config, "cpu", Distributed(), workers)
    rates, steps = [], []
    with learner.working():
        learner.step(streams, 1e-3)
        for _ in range(args.repeats):
            torch.set_num_threads(max(workers, torch.get_num_threads()))
            rates.append(_sgemm())
            torch.set_num_threads(max(1, torch.get_num_threads() // workers))
            learner.step(streams, 1e-3)  # sgemm's threads still spin a while
            steps += [_seconds(lambda: learner.step(streams, 1e-3)) for _ in range(_STEPS)]
        parts = _parts(learner, streams, config)
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


def _weights(model: ModelConfig) -> int:
    """Multiply-adds for a character: the weights of all products."""
    inputs = [model.n_embed] + [model.n_hidden] * (model.n_layers - 1)
    return sum(4 * model.n_hidden * (n + model.n_hidden) for n in inputs) + model.n_hidden * model.vocab_size


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _sgemm() -> float:
    """Multiply-adds times two, a second: a product that is large enough to be the machine's best."""
    n = 1536
    a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
    torch.mm(a, b, out=out)
    return 2 * n**3 / min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(3))


def _parts(learner: Learner, streams: Streams, config: TrainConfig) -> dict[str, float]:
    """Where a step goes: the parts' passes, and what comes after them in one thread."""
    passes, rest = [], []
    for _ in range(3):
        began = time.perf_counter()
        parts = learner._map(lambda i: learner._part(i, *streams.window(0, learner._rows[i])))
        passes.append(time.perf_counter() - began)
        rest.append(_seconds(lambda parts=parts: learner._apply(parts)))  # type: ignore[misc]
    return {"forward and backward": min(passes), "sum, clip, AdamW, running mean": min(rest)}


def ranks(args: argparse.Namespace) -> dict[str, Any]:
    """Two processes under torchrun against one, over the same characters: the losses must agree within 0.03."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    racing = commands.add_parser("race")
    racing.add_argument("text", type=Path)
    racing.add_argument("--nanogpt", type=Path, help="a checkout; without it, our re-statement of the recipe")
    racing.add_argument("--picture", type=Path, default=Path("race.svg"))
    racing.set_defaults(run=race)
    step = commands.add_parser("speed")
    step.add_argument("--preset", choices=PRESETS, default="standard")
    step.add_argument("--repeats", type=int, default=7)
    step.set_defaults(run=speed)
    both = commands.add_parser("ranks")
    both.add_argument("text", type=Path)
    both.add_argument("--steps", type=int, default=600)
    both.set_defaults(run=ranks)
    args = parser.parse_args()
    print(json.dumps(args.run(args)))


if __name__ == "__main__":
    main()
