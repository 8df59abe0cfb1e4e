"""A validation during training: its losses, and how much of a large validation part it reads."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHARACTERS = 1_000_000
"""Characters of the validation part that are read, evenly spaced: reading 100 MB would take an hour."""


@dataclass(frozen=True, slots=True)
class Validation:
    """The losses of one validation, in nats per character."""

    step: int
    elapsed_s: float
    train_loss: float  # running mean over the last windows
    val_loss: float  # stateful protocol, on a sample of the validation part
    is_best: bool = False  # no validation before it had a lower loss
