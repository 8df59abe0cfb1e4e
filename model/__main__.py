"""python -m model train | sample | info: the trainer job and its neighbours, at a terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from model import checkpoint, console
from model.config import PRESETS, ModelConfig, TrainConfig
from model.corpus import Corpus
from model.default_text import default_text
from model.errors import CheckpointError, ModelError
from model.generate import write
from model.sampling import SamplingParams
from model.stepper.choose import choose
from model.train import fit

_STORE = Path("data/checkpoints")


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except ModelError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="train | sample | info")

    train = commands.add_parser("train", help="a text in, a checkpoint with the best validation loss out")
    train.add_argument("corpus", type=Path, nargs="?", help="a UTF-8 text file; without it, Shakespeare's works")
    train.add_argument("--out", type=Path, default=_STORE, help=f"folder of checkpoints (default {_STORE})")
    train.add_argument("--preset", choices=PRESETS, default="quick", help="a starting point; options override it")
    train.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    train.add_argument("--no-promote", action="store_true", help="do not make it the model that is served")
    for config in (ModelConfig, TrainConfig):
        for f in fields(config):
            if f.name != "vocab_size":
                kind = {"int": int, "float": float}.get(str(f.type), str)
                option = "--" + f.name.replace("_", "-")
                train.add_argument(option, dest=f.name, type=kind, help=f"{f.metadata['help']} (default {f.default})")
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="write text, the same that the service would")
    sample.add_argument("prompt", nargs="?", default="")
    sample.add_argument("--checkpoint", type=Path, help="default: the promoted one")
    sample.add_argument("--store", type=Path, default=_STORE, help=argparse.SUPPRESS)
    sample.add_argument("--max-chars", type=int, default=500)
    sample.add_argument("--temperature", type=float, default=1.0)
    sample.add_argument("--top-k", type=int, default=0)
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--min-p", type=float, default=0.0)
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--precision", choices=["fp32", "int8"], default="fp32", help="of the native stepper's weights")
    sample.set_defaults(run=_sample)

    info = commands.add_parser("info", help="what a checkpoint is and where it came from")
    info.add_argument("checkpoint", type=Path, nargs="?", help="default: the promoted one")
    info.add_argument("--store", type=Path, default=_STORE, help=argparse.SUPPRESS)
    info.set_defaults(run=_info)
    return parser


def _train(args: argparse.Namespace) -> None:
    given = {**PRESETS[args.preset], **{k: v for k, v in vars(args).items() if v is not None}}
    config = TrainConfig.from_dict(_only(TrainConfig, given))
    corpus = Corpus.from_file(args.corpus, config) if args.corpus else Corpus.from_text(default_text(), config)
    model = ModelConfig(vocab_size=len(corpus.vocab), **_only(ModelConfig, given))
    with console.training(corpus, model, config) as watch:
        path = fit(corpus, model, config, args.out, device=args.device, watch=watch)
    if not args.no_promote:
        checkpoint.promote(path)
    console.trained(checkpoint.load(path), path, promoted=not args.no_promote)


def _sample(args: argparse.Namespace) -> None:
    loaded = checkpoint.load(args.checkpoint or _promoted(args.store))
    params = SamplingParams(args.temperature, args.top_k, args.top_p, args.min_p)
    stepper, _ = choose(loaded.network(), n_slots=1, device="cpu", precision=args.precision)
    print(args.prompt, end="")
    for text in write(stepper, loaded.vocab, args.prompt, args.max_chars, params, args.seed):
        print(text, end="", flush=True)
    print()


def _info(args: argparse.Namespace) -> None:
    path = args.checkpoint or _promoted(args.store)
    loaded = checkpoint.load(path)
    console.describe(loaded, path, stepper=choose(loaded.network(), n_slots=1, device="cpu")[1])


def _promoted(store: Path) -> Path:
    path = checkpoint.promoted(store)
    if path is None:
        raise CheckpointError(f"{store}: nothing has been promoted; python -m model train makes a model")
    return path


def _only(config: type, given: dict[str, Any]) -> dict[str, Any]:
    return {f.name: given[f.name] for f in fields(config) if f.name in given and f.name != "vocab_size"}


if __name__ == "__main__":
    sys.exit(main())
