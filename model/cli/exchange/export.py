"""python -m model export: a checkpoint in another format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from model import arguments
from model.atomic_files import atomic_write
from model.checkpoints.file_format import Checkpoint, load
from model.cli import options
from model.cli.exchange import remote
from model.cli.reports import contents
from model.config import WEIGHT_PRECISIONS, WeightPrecision
from model.errors import ConfigError
from model.evaluation import protocols
from model.export.hf import card, folder
from model.export.page.render import to_page


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="MODEL", help="a checkpoint file (default: the promoted one)"
    )
    options.add_checkpoint_folder(command)
    options.add_model_name(command)
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--format",
        type=arguments.one_of(tuple(_FORMATS)),
        metavar="{" + ",".join(_FORMATS) + "}",
        help="onnx: a model of one step for any ONNX runtime; hf: a folder in the layout of the Hugging Face hub; "
        "html: one page that writes offline by itself",
    )
    where.add_argument(
        "--to",
        type=arguments.checked(remote.check_url),
        metavar="URL",
        help="a Longhand server, which gets the checkpoint as it is; the key is read from ADMIN_KEY",
    )
    command.add_argument(
        "--precision",
        type=arguments.one_of(WEIGHT_PRECISIONS),
        help="of the weights of onnx, fp32 or int8 (default: fp32); hf has fp32, html int8",
    )
    command.add_argument("--out", type=Path, help="what to write (default: beside the model, with its name)")
    contents.add_origin(command)
    contents.add_generation(command)


def run(args: argparse.Namespace) -> None:
    """Write the model in the chosen format and print its path.

    Raises:
        ConfigError: An option does not fit the format.
        CheckpointError: The model cannot be read.
        StorageError: The file cannot be written.
    """
    if args.format != "hf":
        _refuse(args, ("corpus", "run_folder", "items", "max_chars"), "it is for the model card of hf")
    path = options.chosen_checkpoint(args)
    if args.to is not None:
        _refuse(args, ("precision", "out"), "a server gets the checkpoint as it is")
        print(remote.send(args.to, path))
        return
    print(_FORMATS[args.format](args, path, load(path)))


def _refuse(args: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    for name in names:
        if (value := getattr(args, name)) is not None:
            field = "run" if name == "run_folder" else name
            raise ConfigError(field=field, value=str(value), expected=f"none: {reason}")


def _export_onnx(args: argparse.Namespace, path: Path, checkpoint: Checkpoint) -> Path:
    from model.export.onnx_model import to_onnx  # onnx is an extra

    precision: WeightPrecision = args.precision or "fp32"
    default = path.with_suffix(".onnx") if precision == "fp32" else path.with_name(f"{path.stem}-int8.onnx")
    out = _file(args.out or default, ".onnx")
    return _write(out, to_onnx(checkpoint, precision))


def _export_hf(args: argparse.Namespace, path: Path, checkpoint: Checkpoint) -> Path:
    if args.precision == "int8":
        raise ConfigError(
            field="precision", value=args.precision, expected="fp32: the folder has the weights as they are"
        )
    out: Path = args.out or path.with_name(f"{path.stem}-hf")
    result = contents.contents(args, path, checkpoint)
    losses: dict[str, float] = {checkpoint.val_protocol: checkpoint.val_loss}
    if checkpoint.items is None and result.corpus is not None:
        losses["windowed"] = protocols.loss(checkpoint.network(), result.corpus.val, "windowed")
    folder.write_folder(checkpoint, out, card.render(checkpoint, result.sections, losses))
    return out


def _export_html(args: argparse.Namespace, path: Path, checkpoint: Checkpoint) -> Path:
    if args.precision == "fp32":
        raise ConfigError(field="precision", value=args.precision, expected="int8: the page has rounded weights")
    out = _file(args.out or path.with_name(f"{path.stem}-page.html"), ".html")
    return _write(out, to_page(checkpoint, checkpoint.corpus or path.stem))


def _file(path: Path, suffix: str) -> Path:
    """Return a path, if it ends as the format's files do.

    Raises:
        ConfigError: It does not.
    """
    if path.suffix != suffix:
        raise ConfigError(field="out", value=str(path), expected=f"a file that ends in {suffix}")
    return path


def _write(path: Path, data: bytes) -> Path:
    with atomic_write(path) as file:
        file.write(data)
    return path


_FORMATS: dict[str, Callable[[argparse.Namespace, Path, Checkpoint], Path]] = {
    "onnx": _export_onnx,
    "hf": _export_hf,
    "html": _export_html,
}
