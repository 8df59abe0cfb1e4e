"""python -m model plot: draw the loss curves of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    command.add_argument("--out", type=Path, help="a .svg or .png file (default: curves.svg in the run's folder)")


def run(args: argparse.Namespace) -> None:
    """Draw the picture and print its path."""
    from model.evaluation.plots import draw  # matplotlib takes a second to load

    print(draw(args.folder, args.out or args.folder / "curves.svg"))
