"""Run the command line: python -m model train | sample | score | sweep | plot | report | info | export | import."""

from __future__ import annotations

import sys

from model.cli import main
from model.training.distributed import exit_process

if __name__ == "__main__":
    sys.exit(exit_process(main()))
