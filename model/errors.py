"""Every error that model/ raises on purpose.

ModelError
├── ConfigError            a setting is unknown or out of range
├── TextError              a training text cannot be used
│   └── TextTooShort       it is too short for its split, batch size and sequence length
├── UnknownCharacters      a text has characters that the vocabulary lacks
├── StructuredOutputError  a regular expression, a list of choices or a JSON schema cannot be used
├── CheckpointError        a checkpoint is missing, truncated, of another format or modified
│   └── PromotionConflict  another checkpoint was promoted or rolled back in the meantime
├── StateError             the bytes of a stored hidden state are damaged or of another layout
├── TrainingError          a training run cannot continue, for example because its loss is not a number
└── StorageError           a file cannot be written, or a folder cannot be locked

An error carries what was wrong as attributes, and its message is made from them here and nowhere else. A caller that
needs a part of the message reads the attribute.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class ModelError(Exception):
    """The base of the tree. The message is `field: problem, expected ...`, with the parts that are given."""

    def __init__(self, problem: str = "", *, field: str = "", value: object = None, expected: str = "") -> None:
        """Create the error; each argument becomes an attribute.

        Args:
            problem: What is wrong. When it is empty, the message says which value was received.
            field: What the error is about: a setting, a file, a part of the input. Empty: nothing of the kind.
            value: The value that was received.
            expected: What would have been accepted.
        """
        super().__init__(problem)
        self.problem = problem
        self.field = field
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        """Return the message."""
        problem = self.problem or f"got {short_repr(self.value)}"
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.field}: {problem}{expected}" if self.field else f"{problem}{expected}"


def short_repr(value: object, most: int = 200) -> str:
    """Return a value as an error shows it: its `repr`, shortened where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no integer of more than 4,300 digits
        return "a number with thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."


class ConfigError(ModelError, ValueError):
    """Raised when a setting is unknown or out of range."""


class TextError(ModelError, ValueError):
    """Raised when a training text cannot be used: empty, not UTF-8, or with too many distinct characters."""


class TextTooShort(TextError):
    """Raised when a text is too short to be split and trained on."""

    def __init__(self, problem: str = "", *, needed: int = 0, expected: str = "") -> None:
        """Create the error; `needed` is the number of characters that would be enough."""
        super().__init__(problem, expected=expected)
        self.needed = needed


class UnknownCharacters(ModelError, ValueError):
    """Raised when a text has characters that the vocabulary lacks."""

    _LISTED = 8

    def __init__(self, unknown: Sequence[tuple[int, str]]) -> None:
        """Create the error; `unknown` has the first position of each unknown character and the character, in order."""
        listed = ", ".join(f"{c!r} (U+{ord(c):04X}) at {i}" for i, c in unknown[: self._LISTED])
        more = f" and {len(unknown) - self._LISTED} more" if len(unknown) > self._LISTED else ""
        super().__init__(f"the model's vocabulary lacks {listed}{more}", value="".join(c for _, c in unknown))
        self.args = (unknown,)
        self.unknown = list(unknown)


class StructuredOutputError(ModelError, ValueError):
    """Raised when a regular expression, a list of choices or a JSON schema cannot be used."""


class CheckpointError(ModelError):
    """Raised when a checkpoint is missing, truncated, of another format or modified."""


class PromotionConflict(CheckpointError):
    """Raised when another checkpoint was promoted, or rolled back, since the caller read which one is promoted."""


class StateError(ModelError):
    """Raised when the bytes of a stored hidden state are damaged or of another layout."""


class TrainingError(ModelError):
    """Raised when a training run cannot continue; the best checkpoint so far has been saved."""


class StorageError(ModelError):
    """Raised when a file cannot be written or a folder cannot be locked; existing files are unchanged."""

    @property
    def is_full(self) -> bool:
        """Whether the disk has no space left, or a quota is used up."""
        return isinstance(self.__cause__, OSError) and self.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
