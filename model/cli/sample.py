"""python -m model sample: generate text from a checkpoint."""

from __future__ import annotations

import argparse

from model.checkpoints import file_format
from model.cli import options
from model.config import WEIGHT_PRECISIONS
from model.network.sampling import SamplingParams
from model.stepper.choose import choose
from model.stepper.generate import write


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("prompt", nargs="?", default="", help="the text to continue (default: none)")
    options.add_checkpoint(command)
    command.add_argument("--max-chars", type=int, default=500, help="characters to generate (default 500)")
    for p in SamplingParams.fields():
        help = f"{p.help} (default {p.default:g})"
        command.add_argument("--" + p.name.replace("_", "-"), type=p.type, default=p.default, help=help)
    command.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default 0)")
    command.add_argument(
        "--precision",
        choices=WEIGHT_PRECISIONS,
        default="fp32",
        help="of the native stepper's weights (default fp32)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the prompt and its continuation, character by character."""
    loaded = file_format.load(options.chosen_checkpoint(args))
    params = SamplingParams.from_attributes(args)
    stepper, _ = choose(loaded.network(), n_slots=1, device="cpu", precision=args.precision)
    print(args.prompt, end="")
    for text in write(stepper, loaded.vocab, args.prompt, args.max_chars, params, args.seed):
        print(text, end="", flush=True)
    print()
