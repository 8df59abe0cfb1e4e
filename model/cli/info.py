"""python -m model info: describe a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.checkpoints import file_format
from model.cli import console, options


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("checkpoint", type=Path, nargs="?", help="a checkpoint file (default: the promoted one)")
    options.add_checkpoint_folder(command)
    options.add_model_name(command)


def run(args: argparse.Namespace) -> None:
    """Print what the checkpoint is and where it came from."""
    path = options.chosen_checkpoint(args)
    console.print_checkpoint(file_format.load(path), path)
