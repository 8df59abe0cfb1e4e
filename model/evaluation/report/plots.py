"""Plots: the loss curves of a run as a file, and those of a report as SVG. They read no files."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model.errors import ConfigError
from model.evaluation.protocols import bits

_SUFFIXES = (".svg", ".png")
_BINS = 60  # at most


def draw(metrics: Sequence[Mapping[str, Any]], out: Path, title: str = "") -> Path:
    """Draw training and validation loss against steps, with the best validation annotated.

    Args:
        metrics: One mapping a progress report, with step, train_loss and val_loss (None between validations).
        out: The file to write.
        title: The heading of the picture.

    Returns:
        The path of the file.

    Raises:
        ConfigError: The file's name has another ending.
    """
    if out.suffix not in _SUFFIXES:
        raise ConfigError(field="out", value=str(out), expected=f"a file that ends in {' or '.join(_SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    loss_curves(metrics, title).savefig(out)
    return out


def loss_curves(metrics: Sequence[Mapping[str, Any]], title: str = "", protocol: str = "stateful") -> Figure:
    """Return training and validation loss against steps, with the best validation annotated.

    Args:
        metrics: One mapping a progress report, with step, train_loss and val_loss (None between validations).
        title: The heading of the picture.
        protocol: Of the validation losses.
    """
    validations = [line for line in metrics if line["val_loss"] is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps, train_losses = [line["step"] for line in metrics], [line["train_loss"] for line in metrics]
    axes.plot(steps, train_losses, label="training", linewidth=1)
    if validations:
        steps, val_losses = [v["step"] for v in validations], [v["val_loss"] for v in validations]
        axes.plot(steps, val_losses, "o-", label=f"validation ({protocol})", markersize=3)
        best = min(validations, key=lambda v: float(v["val_loss"]))
        axes.annotate(
            f"{best['val_loss']:.4f} nats = {bits(best['val_loss']):.4f} bits",
            (best["step"], best["val_loss"]),
            textcoords="offset points",
            xytext=(-8, 24),
            ha="right",
            arrowprops={"arrowstyle": "-"},
        )
    axes.set_title(title)
    _label(axes, "step", "nats per character")
    return figure


def length_distribution(lengths: Mapping[str, Sequence[int]]) -> Figure:
    """Return the distribution of lengths of items, a line for each list of items by its name."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    longest = max((max(some, default=0) for some in lengths.values()), default=0)
    width = max(1, math.ceil((longest + 1) / _BINS))
    edges = np.arange(0, longest + width + 1, width) - 0.5
    for name, some in lengths.items():
        counts, _ = np.histogram(some, edges)
        axes.stairs(counts / max(1, len(some)), edges, label=name)
    _label(axes, "characters of an item", "share of the items")
    return figure


def novelty(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Return shares of the first n generated items against n, a line for each share by its name."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, shares in curves.items():
        axes.plot(range(1, len(shares) + 1), shares, label=name, linewidth=1)
    axes.set_ylim(0, 1.02)
    _label(axes, "generated items", "share of them")
    return figure


def as_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG file, the same bytes for the same figure."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "report", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    axes.grid(alpha=0.3)
