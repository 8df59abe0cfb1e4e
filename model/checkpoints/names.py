"""The names of models, and where the store of each lies. This module reads no file and loads no library.

The folder of checkpoints itself is the store of the model `default`; `models/NAME/` in it is the store of NAME. So a
folder that was written before there were names is that of `default`, and nothing has to be moved.
"""

from __future__ import annotations

import re
from pathlib import Path

DEFAULT = "default"
"""The name of the model that answers requests which name none."""
NAME = "[a-z0-9][a-z0-9-]{0,62}"
"""The pattern of a model's name. What NO_NAME matches has this form too."""
FINGERPRINT = "[0-9a-f]{16}"
"""The pattern of a checkpoint's id."""
OPENAI_DEFAULT = "longhand"
"""What the OpenAI protocol calls the default model; so no other one can have this name."""
NO_NAME = f"({FINGERPRINT}|{OPENAI_DEFAULT})"
"""The pattern of what has the form of a name, and is none."""
NAME_EXPECTED = f"a name that matches the pattern {NAME}, and not 16 hex digits as an id has, or {OPENAI_DEFAULT}"
"""For errors."""
MODELS = "models"
"""The folder of all models but the default one, in the folder of checkpoints."""


def is_fingerprint(text: str) -> bool:
    """Whether a text that names a model is the id of a checkpoint."""
    return re.fullmatch(FINGERPRINT, text) is not None


def is_model_name(text: str) -> bool:
    """Whether a text can be a model's name; such a name cannot point outside the folder."""
    return re.fullmatch(NAME, text) is not None and re.fullmatch(NO_NAME, text) is None


def store_folder(root: Path, name: str) -> Path:
    """Return the store of a model, which need not exist.

    Args:
        root: The folder of checkpoints.
        name: The model's name.

    Raises:
        ValueError: It can be no name.
    """
    if not is_model_name(name):
        raise ValueError(f"model: got {name!r}, expected {NAME_EXPECTED}")
    return root if name == DEFAULT else root / MODELS / name
