"""What a run says of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run says of itself, after some steps and after each look at the validation part."""

    step: int
    total_steps: int  # an estimate until the budget has been sized
    train_loss: float  # nats per character, a running mean
    val_loss: float | None  # nats per character, protocol (b) on a sample; None between looks
    best: float | None
    lr: float
    chars_per_s: float
    elapsed_s: float
    best_path: Path | None = None  # the checkpoint with that best, which the next better one replaces
    sample: str | None = None  # some text by the model as it is, at a look, if one was asked for
    epochs: float = 0.0  # passes over the training part so far

    def line(self) -> dict[str, Any]:
        """What of it is kept in metrics.jsonl."""
        return {name: value for name, value in asdict(self).items() if name not in ("best_path", "sample")}


Watch = Callable[[Progress], None]
