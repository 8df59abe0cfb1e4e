"""What the launcher prints: a word for the stage, and what happens, a line each."""

from __future__ import annotations

import os
import sys


def say(stage: str, text: str) -> None:
    """Print a line. When the terminal is gone, print nothing from then on: the service does not depend on it."""
    try:
        print(f"{stage:<7} {text}", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
