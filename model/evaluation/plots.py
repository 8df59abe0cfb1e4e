"""A run's curves as a picture: training and validation loss against steps, SVG or PNG by the file's ending."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from model.errors import CheckpointError, ConfigError
from model.evaluation.protocols import bits
from model.training.run_folder import RunFolder

_ENDINGS = (".svg", ".png")


def draw(run: Path, out: Path) -> Path:
    """Draw both curves of a run, the best look marked. Raised: ConfigError, CheckpointError."""
    if out.suffix not in _ENDINGS:
        raise ConfigError(f"out: got {out}, expected a file that ends in {' or '.join(_ENDINGS)}")
    record = RunFolder(run)
    settings, lines = record.settings(), record.metrics()
    looks = [line for line in lines if line["val_loss"] is not None]
    if not lines:
        raise CheckpointError(f"run {run}: has no metrics yet")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([line["step"] for line in lines], [line["train_loss"] for line in lines], label="training", linewidth=1)
    if looks:
        axes.plot(
            [k["step"] for k in looks], [k["val_loss"] for k in looks], "o-", label="validation (b)", markersize=3
        )
        best = min(looks, key=lambda k: float(k["val_loss"]))
        axes.annotate(
            f"{best['val_loss']:.4f} nats = {bits(best['val_loss']):.4f} bits",
            (best["step"], best["val_loss"]),
            textcoords="offset points",
            xytext=(-8, 24),
            ha="right",
            arrowprops={"arrowstyle": "-"},
        )
    model = settings["model"]
    axes.set_title(f"{model['cell']} {model['n_layers']} x {model['n_hidden']}")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per character")
    axes.legend()
    axes.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out
