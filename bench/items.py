"""Lists beside the tools made for them.

    python -m bench.items names names.txt                       # makemore's split: 1,000 test names, ends counted
    python -m bench.items names names.txt --makemore makemore.py # and its transformer in the same run

`names` trains on the list as it is and on the list sorted, each for --minutes, and prints the loss of the test names in
nats per character: the same list, the same split and the same count of characters as makemore's script.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.evaluation.item_losses import item_losses
from model.text.items.layout import ItemLayout
from model.text.memory_map import read_corpora
from model.training.loop import fit

MAKEMORE_SEED = 3407
TEST_NAMES = 1000
N_HIDDEN, N_EMBED = 256, 48
TRAINING = {
    "batch_size": 32,
    "seq_length": 16,
    "lr": 6e-3,
    "dropout": 0.35,
    "weight_drop": 0.2,
    "val_fraction": 0.03,
}


def main() -> None:
    """Run the benchmark that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(required=True, dest="benchmark").add_parser("names")
    names.add_argument("text", type=Path)
    names.add_argument("--minutes", type=float, default=1.0)
    names.add_argument("--steps", type=int, default=0, help="a budget in steps instead of minutes")
    names.add_argument("--makemore", type=Path, help="makemore.py, to be run in the same run")
    names.add_argument("--makemore-steps", type=int, default=7500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_names(args, Path(folder))


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
    config = TrainConfig.from_dict({**TRAINING, "minutes": args.minutes, "steps": args.steps})
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


if __name__ == "__main__":
    main()
