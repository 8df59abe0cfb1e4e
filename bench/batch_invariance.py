"""Batch invariance at scale: texts in random batches on the native stepper, compared bitwise with each text made alone.

    python -m bench.batch_invariance                      # 10^6 characters, fp32 and int8, 1 and 2 threads
    python -m bench.batch_invariance --characters 50000 --model 2x512
    python -m bench.batch_invariance --negative-control   # a stepper that is not invariant: it must find differences

The batches are those of tests/random_batching.py: 1 to 64 rows that join, leave, are cut, moved and cancelled, with
blocks of 1 to 40 steps. In the control, one number is wrong by one unit in the last place in large batches. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from random import Random
from typing import Any

import torch

from model.config import ModelConfig, WeightPrecision
from model.network.char_rnn import CharRNN
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.cuda import CudaStepper
from tests.random_batching import VariantStepper, differing, random_texts, run_alone, run_in_random_batches

VOCAB = 65


def measure(
    network: CharRNN, characters: int, precision: WeightPrecision, threads: int, is_control: bool, device: str
) -> dict[str, Any]:
    """Compare rounds of 150 texts until so many characters have been compared.

    On "cuda" the texts in random batches are generated on a GPU, and those alone on the CPU, as everywhere.
    """
    rng = Random(threads)
    on_gpu = device == "cuda"
    inner = CudaStepper(network, 64, precision) if on_gpu else CpuStepper(network, 64, precision, threads)
    batched: Stepper = VariantStepper(inner) if is_control else inner
    single = CpuStepper(network, 1, precision, threads=1)
    compared, n_texts, n_different, began = 0, 0, 0, time.perf_counter()
    while compared < characters:
        texts = random_texts(rng, 150, VOCAB, longest=600)
        together = run_in_random_batches(batched, texts, rng, longest_block=40)
        alone = [run_alone(single, t, p.steps, k=rng.choice([1, 7, 64])) for t, p in zip(texts, together, strict=True)]
        n_different += len(differing(together, alone))
        compared += sum(len(p.ids) for p in together)
        n_texts += len(texts)
    seconds = time.perf_counter() - began
    inner.close()
    single.close()
    return {
        "precision": precision, "threads": threads, "characters": compared, "texts": n_texts,
        "different": n_different, "seconds": round(seconds, 1),
    }  # fmt: skip


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=1_000_000, help="to compare, all settings together")
    parser.add_argument("--model", default="2x96", help="layers x hidden units")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the random batches")
    parser.add_argument("--negative-control", action="store_true", help="expect differences: the stepper is variant")
    args = parser.parse_args()
    layers, hidden = (int(n) for n in args.model.split("x"))
    torch.manual_seed(1)
    network = CharRNN(ModelConfig(VOCAB, hidden, layers, 32))
    network.head.weight.data.mul_(6.0)  # distributions as far from flat as those of a trained network
    settings: list[tuple[WeightPrecision, int]] = [("fp32", 1), ("fp32", 2), ("int8", 1), ("int8", 2)]
    results = []
    for precision, threads in settings:
        results.append(measure(network, args.characters // 4, precision, threads, args.negative_control, args.device))
        print(results[-1], flush=True)
    different = sum(r["different"] for r in results)
    summary = {
        "model": args.model,
        "device": args.device,
        "characters": sum(r["characters"] for r in results),
        "different": different,
    }
    print(json.dumps({**summary, "results": results}))
    return 0 if (different > 0) == args.negative_control else 1


if __name__ == "__main__":
    sys.exit(main())
