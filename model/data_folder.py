"""The folder that Longhand keeps its data in: LONGHAND_HOME, or else ./data."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "LONGHAND_HOME"
DEFAULT = Path("data")


def data_folder() -> Path:
    """Return the folder of checkpoints, corpora, runs, texts and the embedded Redis's data."""
    return Path(os.environ.get(VARIABLE) or DEFAULT)
