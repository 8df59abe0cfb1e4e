"""python -m model import: a model from elsewhere becomes a checkpoint in the store."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from model import arguments
from model.checkpoints import file_format, registry, self_test
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.names import is_fingerprint, is_model_name
from model.cli import console, options
from model.cli.exchange import remote
from model.config import TrainConfig
from model.errors import CheckpointError, ConfigError
from model.export import state_dict
from model.export.hf import folder
from model.stepper.choose import choose
from model.text.corpus import Corpus, Ids, id_type
from model.text.decoding import read_text
from model.text.text_statistics import text_sha256

_VAL_FRACTION = 0.1


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "source",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="a folder that export --format hf wrote, a checkpoint file, or a safetensors file with the state dict of "
        "an nn.LSTM, nn.GRU or nn.RNN with an embedding and a linear layer",
    )
    source.add_argument(
        "--from",
        dest="url",
        type=arguments.checked(remote.check_url),
        metavar="URL",
        help="a Longhand server, whose served model is fetched; the key is read from ADMIN_KEY",
    )
    command.add_argument(
        "--model",
        type=arguments.checked(_check_model),
        metavar="NAME",
        help="of a server: another of its models, by its name or by the id of a checkpoint",
    )
    command.add_argument(
        "--vocab", type=Path, help="of a state dict: a JSON file, the id of each character or a list of characters"
    )
    command.add_argument(
        "--corpus",
        type=Path,
        metavar="FILE",
        help=f"of a state dict: a text to measure its loss on, the last {100 * _VAL_FRACTION:.0f} percent of it",
    )
    options.add_checkpoint_folder(command)
    command.add_argument("--promote", action="store_true", help="serve the model from now on")


def run(args: argparse.Namespace) -> None:
    """Read the model, test it, store it, and print what it is.

    Raises:
        CheckpointError: The model cannot be used, or it does not pass its self-test.
        ConfigError: An option does not fit the model.
        StorageError: The checkpoint cannot be written.
    """
    checkpoint = _read(args)
    self_test.verify_checkpoint(checkpoint)
    stepper, _ = choose(checkpoint.network(), n_slots=1, device="cpu", precision=checkpoint.weight_precision())
    self_test.verify_stepper(stepper, checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        path = registry.register(checkpoint.save(Path(temporary)), args.store)
    if args.promote:
        registry.promote(path)
    console.print_checkpoint(file_format.load(path), path)


def _check_model(value: str) -> None:
    if not is_fingerprint(value) and not is_model_name(value):
        expected = "a model's name, or the id of a checkpoint, 16 hexadecimal digits"
        raise ConfigError(field="model", value=value, expected=expected)


def _read(args: argparse.Namespace) -> Checkpoint:
    if args.url is not None:
        _refuse(args, "a server's model")
        with tempfile.TemporaryDirectory() as temporary:
            return file_format.load(remote.fetch(args.url, args.model, Path(temporary)))
    if args.model is not None:
        raise ConfigError(field="model", value=args.model, expected="none: it is for --from")
    source: Path = args.source
    if source.is_dir():
        _refuse(args, "a folder")
        return folder.read_folder(source)
    if not source.is_file():
        raise CheckpointError("no such file or folder", field=f"model {source}")
    state_dict.refuse_pickle(source)
    if _is_checkpoint(source):
        _refuse(args, "a checkpoint file")
        return file_format.load(source)
    for name in ("vocab", "corpus"):
        if getattr(args, name) is None:
            expected = "a file: the state dict of a plain model says neither its characters nor its loss"
            raise ConfigError("is missing", field=name, expected=expected)
    checkpoint = state_dict.read_state_dict(source, state_dict.read_vocabulary(args.vocab))
    text, _ = read_text(args.corpus, checkpoint.vocab.normalization)
    settings = {"val_fraction": _VAL_FRACTION}
    config = TrainConfig.from_dict({**settings, "batch_size": 1, "seq_length": 1})
    ids: Ids = checkpoint.vocab.encode(text).astype(id_type(checkpoint.vocab))
    corpus = Corpus.from_ids(checkpoint.vocab, ids, text_sha256(text), config)
    return replace(state_dict.measured(checkpoint, corpus, settings), corpus=args.corpus.stem)


def _is_checkpoint(path: Path) -> bool:
    try:
        file_format.read_info(path)
    except CheckpointError as error:
        if "format is" in error.problem:  # another program's safetensors file
            return False
        raise
    return True


def _refuse(args: argparse.Namespace, kind: str) -> None:
    for name in ("vocab", "corpus"):
        if (value := getattr(args, name)) is not None:
            raise ConfigError(field=name, value=str(value), expected=f"none: {kind} has its own")
