"""Everything that model/ raises on purpose.

ModelError
├── ConfigError        a setting is out of range or unknown
├── TextError          a training text cannot be used
├── UnknownCharacters  a prompt has characters that the vocabulary lacks
├── CheckpointError    a checkpoint is missing, truncated, foreign or tampered with
├── StateError         stored state bytes are damaged or of another shape
└── TrainingError      a run cannot go on (a loss that is not a number)

Each message names what was wrong, its value and what was expected, in words for the person who can mend it.
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of the tree; never raised itself."""


class ConfigError(ModelError, ValueError):
    """Raised when a setting is out of range or unknown."""


class TextError(ModelError, ValueError):
    """Raised when a training text cannot be used: empty, too short, not UTF-8, too many distinct characters."""


class UnknownCharacters(ModelError, ValueError):
    """Raised when a text has characters that the vocabulary lacks."""

    def __init__(self, unknown: list[tuple[int, str]]) -> None:
        self.unknown = unknown  # (position, character), the first of each character
        listed = ", ".join(f"{c!r} (U+{ord(c):04X}) at {i}" for i, c in unknown[:8])
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        super().__init__(f"the model's vocabulary lacks {listed}{more}")


class CheckpointError(ModelError):
    """Raised when a checkpoint is missing, truncated, foreign or tampered with."""


class StateError(ModelError):
    """Raised when stored state bytes are damaged or of another shape."""


class TrainingError(ModelError):
    """Raised when a run cannot go on; what was best so far has been kept."""
