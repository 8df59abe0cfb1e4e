"""The loss curves of a run as a picture, SVG or PNG. It knows no run folder: it draws the metrics that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from model.errors import ConfigError
from model.evaluation.protocols import bits

_SUFFIXES = (".svg", ".png")


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
    validations = [line for line in metrics if line["val_loss"] is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps, train_losses = [line["step"] for line in metrics], [line["train_loss"] for line in metrics]
    axes.plot(steps, train_losses, label="training", linewidth=1)
    if validations:
        steps, val_losses = [v["step"] for v in validations], [v["val_loss"] for v in validations]
        axes.plot(steps, val_losses, "o-", label="validation (stateful)", markersize=3)
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
    axes.set_xlabel("step")
    axes.set_ylabel("nats per character")
    axes.legend()
    axes.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
