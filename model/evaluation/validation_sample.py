"""A validation during training: its losses, and how much of a large validation part it reads."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHARACTERS = 1_000_000
"""Characters of the validation part that are read, evenly spaced: reading 100 MB would take an hour."""


_MIN_SAMPLE = 16_384
_SAMPLE_SHARE = 0.06  # of the characters trained on: about a fiftieth of the time goes into validation


def sample_size(trained_characters: int, validations: int) -> int:
    """Return how many characters of the validation part one validation during training reads.

    Args:
        trained_characters: How many characters the whole run trains on, repetitions included.
        validations: How many validations the run has.
    """
    return max(_MIN_SAMPLE, int(_SAMPLE_SHARE * trained_characters / validations))


@dataclass(frozen=True, slots=True)
class Validation:
    """The losses of one validation, in nats per character."""

    step: int
    elapsed_s: float
    train_loss: float  # running mean over the last windows
    val_loss: float  # stateful protocol, of a list the items protocol, on a sample of the validation part
    is_best: bool = False  # no validation before it had a lower loss
    val_loss_per_item: float | None = None  # nats per item of a list
