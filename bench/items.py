"""Lists beside the tools made for them.

    python -m bench.items names names.txt                       # makemore's split: 1,000 test names, ends counted
    python -m bench.items names names.txt --makemore makemore.py # and its transformer in the same run
    python -m bench.items serve names.txt                        # 10,000 unique novel items over HTTP
    python -m bench.items molecules FOLDER                       # those of MOSES, needs rdkit: see bench/molecules.py

`names` trains on the list as it is and on the list sorted, each for --minutes, and prints the loss of the test names in
nats per character: the same list, the same split and the same count of characters as makemore's script.

`serve` trains on the list, and generates --items unique and novel items through HTTP as a stream and by the code of
the command line, each --rounds times in turn with the engine that generates texts which nobody reads. Rates are those
of all candidates' characters, ends counted, also of those that are rejected; the items must be the same. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from bench import molecules
from bench.serve import Bare
from model.checkpoints import registry
from model.checkpoints.file_format import Checkpoint, load
from model.config import ModelConfig, TrainConfig
from model.evaluation.item_losses import item_losses
from model.network.sampling import SamplingParams
from model.stepper import Stepper
from model.stepper.choose import choose
from model.stepper.items import LANES, ItemCollector, ItemConstraints, generate_items
from model.text.items.layout import ItemLayout
from model.text.memory_map import read_corpora
from model.training.loop import fit
from service.settings import Settings
from tests.servers import Service, parse_events

MAKEMORE_SEED = 3407
TEST_NAMES = 1000
N_HIDDEN, N_EMBED = 384, 48
TRAINING = {
    "batch_size": 32,
    "seq_length": 16,
    "lr": 4e-3,
    "dropout": 0.35,
    "weight_drop": 0.2,
    "val_fraction": 0.03,
}


def main() -> None:
    """Run the benchmark that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = parser.add_subparsers(required=True, dest="benchmark")
    names, serve = benchmarks.add_parser("names"), benchmarks.add_parser("serve")
    for benchmark in (names, serve):
        benchmark.add_argument("text", type=Path)
        benchmark.add_argument("--minutes", type=float, default=1.0)
        benchmark.add_argument("--steps", type=int, default=0, help="a budget in steps instead of minutes")
    serve.add_argument("--items", type=int, default=10_000)
    serve.add_argument("--slots", type=int, default=64)
    serve.add_argument("--rounds", type=int, default=7)
    serve.add_argument("--bare-s", type=float, default=3.0, help="seconds that the engine alone is measured")
    molecules.add_arguments(benchmarks.add_parser("molecules", help="see bench/molecules.py"))
    names.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the training")
    names.add_argument("--makemore", type=Path, help="makemore.py, to be run in the same run")
    names.add_argument("--makemore-steps", type=int, default=7500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"names": compare_names, "serve": compare_rates, "molecules": molecules.run}
        runs[args.benchmark](args, Path(folder))


def makemore_split(text: str) -> tuple[list[str], list[str]]:
    """Return the training and the test names as makemore's script draws them."""
    words = [word for line in text.splitlines() if (word := line.strip())]
    torch.manual_seed(MAKEMORE_SEED)
    order = torch.randperm(len(words)).tolist()
    n_test = min(TEST_NAMES, int(len(words) * 0.1))
    return [words[i] for i in order[:-n_test]], [words[i] for i in order[-n_test:]]


def compare_names(args: argparse.Namespace, folder: Path) -> None:
    """Print the loss of the test names after training on the list, on the sorted list, and by makemore."""
    train, test = makemore_split(args.text.read_text("utf-8"))
    config = TrainConfig.from_dict(
        {**TRAINING, "minutes": args.minutes, "steps": args.steps, "precision": args.precision}
    )
    for name, items in (("as it is", train), ("sorted", sorted(train))):
        path = folder / f"{name}.txt"
        path.write_text("\n".join(items), "utf-8")
        corpus = read_corpora([path], lambda _sizes, _n: config, folder, layout=ItemLayout("lines"))
        checkpoint = load(
            fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=N_HIDDEN, n_embed=N_EMBED), config, folder / name)
        )
        end = checkpoint.vocab.end
        ids = checkpoint.vocab.encode("".join(end + item for item in test)).astype(np.int64)
        losses = item_losses(checkpoint.network(), ids, checkpoint.vocab.start)
        print(
            f"longhand, {name}: {losses.per_character:.4f} nats per character, {losses.per_item:.3f} per name; step "
            f"{checkpoint.step:,}, training {checkpoint.train_loss:.4f}",
            flush=True,
        )
    if args.makemore is not None:
        command = [sys.executable, str(args.makemore), "-i", str(args.text), "-o", str(folder / "makemore")]
        subprocess.run([*command, "--max-steps", str(args.makemore_steps)], check=True, cwd=folder)


def compare_rates(args: argparse.Namespace, folder: Path) -> None:
    """Print the rates of items over HTTP and by the command line's code, as ratios to that of the engine alone."""
    config = TrainConfig.from_dict({**TRAINING, "minutes": args.minutes, "steps": args.steps})
    corpus = read_corpora([args.text], lambda _sizes, _n: config, folder, layout=ItemLayout("lines"))
    path = fit(corpus, ModelConfig(len(corpus.vocab), n_hidden=N_HIDDEN, n_embed=N_EMBED), config, folder / "run")
    registry.promote(registry.register(path, folder / "checkpoints"))
    checkpoint = load(path)
    bare = Bare(checkpoint, args.slots, checkpoint.weight_precision(), Settings.model_fields["block_ms"].default / 1000)
    stepper, _ = choose(checkpoint.network(), LANES, "cpu", checkpoint.weight_precision())
    bare_rates, rates, local_rates = [], [], []
    try:
        with Service(CHECKPOINT_DIR=str(folder / "checkpoints"), SLOTS=str(args.slots)) as service:
            for seed in range(args.rounds):
                bare_rates.append(bare.chars_per_s(args.bare_s))
                local, n_chars, seconds = local_items(checkpoint, stepper, args.items, seed)
                local_rates.append(n_chars / seconds)
                began = time.monotonic()
                body = {"items": args.items, "novel": True, "seed": seed, "stream": True}
                received = service.client.post("/generate", json=body).raise_for_status().text
                rates.append(n_chars / (time.monotonic() - began))
                events = parse_events(received)
                items = [event.data["text"] for event in events if event.name == "item"]
                assert items == local, "the items over HTTP are not those of the command line"
                done = events[-1].data
                print(
                    f"seed {seed}: {done['generated']:,} items of {done['candidates']:,} candidates, {n_chars:,} "
                    f"characters; per second: engine {bare_rates[-1]:,.0f}, HTTP {rates[-1]:,.0f}, command line "
                    f"{local_rates[-1]:,.0f}",
                    flush=True,
                )
    finally:
        bare.engine.stop()
    engine = statistics.median(bare_rates)
    ratios = {"http": statistics.median(rates) / engine, "command_line": statistics.median(local_rates) / engine}
    print(json.dumps({"engine_chars_per_s": round(engine), **{name: round(r, 3) for name, r in ratios.items()}}))


def local_items(checkpoint: Checkpoint, stepper: Stepper, n: int, seed: int) -> tuple[list[str], int, float]:
    """Return unique novel items by the code of `sample --items`, the characters of all candidates, and the seconds."""
    assert checkpoint.items is not None
    limit = checkpoint.items.layout.max_item_chars
    collector = ItemCollector(ItemConstraints(n, novel=True, max_chars=limit), checkpoint.items)
    began = time.monotonic()
    items = [item.text for item in generate_items(stepper, checkpoint.vocab, collector, SamplingParams(), seed)]
    return items, collector.n_chars, time.monotonic() - began


if __name__ == "__main__":
    main()
