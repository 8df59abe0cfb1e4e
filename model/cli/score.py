"""python -m model score: a model's loss on a text, under the named evaluation protocols."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from model.checkpoints import file_format
from model.cli import console, options
from model.config import TrainConfig
from model.errors import ConfigError
from model.evaluation import protocols
from model.evaluation.dynamic_evaluation import dynamic_loss
from model.stepper.choose import Precision, choose
from model.text.corpus import Corpus, Ids
from model.text.decoding import read_text
from model.text.default_text import default_text


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_corpus(command)
    options.add_checkpoint(command)
    command.add_argument(
        "--part", choices=("val", "test", "all"), default="val", help="of the text, as the model's run split it"
    )
    command.add_argument("--protocols", help="a: crops of 256; b: one pass; c: dynamic, slow (default ab)")
    command.add_argument(
        "--precision", choices=get_args(Precision), help="measure the native stepper with these weights: (b) only"
    )


def run(args: argparse.Namespace) -> None:
    """Print the loss under each protocol that was chosen."""
    chosen = ("b" if args.precision else "ab") if args.protocols is None else args.protocols
    if not chosen or set(chosen) - set("abc"):
        raise ConfigError(field="protocols", value=chosen, expected="letters of a, b and c")
    if args.precision and set(chosen) != {"b"}:
        raise ConfigError(
            field="protocols", value=chosen, expected=f"b with precision {args.precision}: a stepper reads on"
        )
    loaded = file_format.load(options.chosen_checkpoint(args))
    ids = _part_of_text(args, loaded)
    network = loaded.network()
    if args.precision:
        stepper, name = choose(network, n_slots=64, device="cpu", precision=args.precision)
        loss = protocols.loss_as_served(stepper, ids)
        console.print_scores(f"{args.part}, {name}", len(ids) - 1, {"b": loss})
        return
    losses: dict[str, Callable[[], float]] = {
        "a": lambda: protocols.loss(network, ids, "a"),
        "b": lambda: protocols.loss(network, ids, "b"),
        "c": lambda: dynamic_loss(network, ids),
    }
    console.print_scores(args.part, len(ids) - 1, {p: losses[p]() for p in sorted(set(chosen))})


def _part_of_text(args: argparse.Namespace, loaded: file_format.Checkpoint) -> Ids:
    """Return the ids of the chosen part of the text, split by the fractions that the model was trained with."""
    text = read_text(args.corpus)[0] if args.corpus else default_text()
    ids = loaded.vocab.encode(text)
    fractions = {name: loaded.options[name] for name in ("val_fraction", "test_fraction") if name in loaded.options}
    config = TrainConfig.from_dict({**fractions, "batch_size": 1, "seq_length": 1})
    corpus = Corpus.from_ids(loaded.vocab, ids, "", config)
    if args.part == "test" and not len(corpus.test):
        raise ConfigError(
            "got 'test', but the model's run kept no test part (its test_fraction is 0)", field="part", value="test"
        )
    return {"val": corpus.val, "test": corpus.test, "all": ids}[args.part]
