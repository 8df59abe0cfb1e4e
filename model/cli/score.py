"""python -m model score: a model's loss on a text, under the named evaluation protocols."""

from __future__ import annotations

import argparse

from model import arguments
from model.checkpoints import file_format
from model.cli import console, options
from model.cli.lists import score as items
from model.config import WEIGHT_PRECISIONS, TrainConfig
from model.errors import ConfigError
from model.evaluation import protocols
from model.evaluation.protocols import parse_protocols, stepper_loss
from model.stepper.choose import choose
from model.text.corpus import Corpus, Ids
from model.text.decoding import read_text
from model.text.default_text import default_text

_PARTS = ("val", "test", "all")


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_corpus(command)
    options.add_checkpoint(command)
    command.add_argument(
        "--part",
        type=arguments.one_of(_PARTS),
        help="val, test or all of the text, as the model's run split it (default val)",
    )
    command.add_argument(
        "--protocols",
        type=arguments.checked(parse_protocols),
        help="names or their letters a, b, c, separated by commas; windowed: crops of 256 characters; "
        "stateful: one pass with the state carried; dynamic: the same by a model that continues to learn, slow "
        "(default windowed,stateful; with --precision, stateful)",
    )
    items.add_items(command)
    command.add_argument(
        "--precision",
        type=arguments.one_of(WEIGHT_PRECISIONS),
        help="measure the native stepper with these weights, fp32 or int8: stateful only",
    )


def run(args: argparse.Namespace) -> None:
    """Print the loss under each protocol that was chosen."""
    default = "stateful" if args.precision else "windowed,stateful"
    chosen = parse_protocols(default if args.protocols is None else args.protocols)
    if args.precision and chosen != ("stateful",):
        expected = f"stateful with precision {args.precision}: a stepper reads the text in one pass"
        raise ConfigError(field="protocols", value=args.protocols, expected=expected)
    loaded = file_format.load(options.chosen_checkpoint(args))
    if loaded.items is not None or items.are_requested(args):
        items.run(args, loaded)
        return
    items.refuse_for_text(args)
    part = args.part or "val"
    ids = _part_of_text(args, loaded, part)
    network = loaded.network()
    if args.precision:
        stepper, name = choose(network, n_slots=64, device="cpu", precision=args.precision)
        loss = stepper_loss(stepper, ids)
        console.print_scores(f"{part}, {name}", len(ids) - 1, {"stateful": loss})
        return
    console.print_scores(part, len(ids) - 1, {p: protocols.loss(network, ids, p) for p in chosen})


def _part_of_text(args: argparse.Namespace, loaded: file_format.Checkpoint, part: str) -> Ids:
    """Return the ids of the chosen part of the text, split by the fractions that the model was trained with."""
    vocab = loaded.vocab
    text = read_text(args.corpus, vocab.normalization)[0] if args.corpus else vocab.normalize(default_text())
    ids = vocab.encode(text)
    fractions = {name: loaded.options[name] for name in ("val_fraction", "test_fraction") if name in loaded.options}
    config = TrainConfig.from_dict({**fractions, "batch_size": 1, "seq_length": 1})
    corpus = Corpus.from_ids(vocab, ids, "", config)
    if part == "test" and not len(corpus.test):
        raise ConfigError(
            "got 'test', but the model's run has no test part (its test_fraction is 0)", field="part", value="test"
        )
    return {"val": corpus.val, "test": corpus.test, "all": ids}[part]
