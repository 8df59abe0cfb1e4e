"""python -m model plot: draw the loss curves of a training run."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.errors import CheckpointError
from model.training.run_folder import RunFolder


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    command.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    command.add_argument("--out", type=Path, help="a .svg or .png file (default: curves.svg in the run's folder)")


def run(args: argparse.Namespace) -> None:
    """Draw the picture and print its path.

    Raises:
        CheckpointError: The folder is not a run's, or it has no metrics yet.
        ConfigError: The picture's file has another ending.
    """
    from model.evaluation.report.plots import draw  # matplotlib takes a second to load

    run_folder = RunFolder(args.folder)
    model, metrics = run_folder.settings()["model"], run_folder.metrics()
    if not metrics:
        raise CheckpointError("has no metrics yet", field=f"run {args.folder}")
    title = f"{model['cell']} {model['n_layers']} x {model['n_hidden']}"
    print(draw(metrics, args.out or args.folder / "curves.svg", title))
