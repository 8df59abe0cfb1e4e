"""python -m model report: what a model generates and what it memorized, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.atomic_files import atomic_write
from model.checkpoints import registry
from model.checkpoints.file_format import load
from model.cli import options
from model.cli.reports.contents import add_generation, add_origin, contents
from model.errors import ConfigError


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="MODEL", help="a checkpoint file (default: the promoted one)"
    )
    options.add_checkpoint_folder(command)
    options.add_model_name(command)
    command.add_argument("--out", type=Path, help="a .html file (default: beside the model, with its name)")
    add_origin(command)
    add_generation(command)


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path.

    Raises:
        ConfigError: An option does not fit the model, or the corpus is another one.
        CheckpointError: The model or the run cannot be read.
        TextError: A file that was named cannot be read.
    """
    from model.evaluation.report import page, plots  # noqa: F401  matplotlib is missed before any work is done

    if args.out is not None and args.out.suffix != ".html":
        raise ConfigError(field="out", value=str(args.out), expected="a file that ends in .html")
    path = options.chosen_checkpoint(args)
    parts = contents(args, path, load(path)).sections
    out = args.out or registry.report_path(path)
    with atomic_write(out) as file:
        file.write(page.render(f"Report on {path.name}", parts).encode())
    print(out)
