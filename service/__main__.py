"""python -m service: everything on this machine, until Ctrl-C.

It starts Redis (an embedded one unless REDIS_URL is set), the trainer and the server, and has a first model trained
when there is none; the service is up meanwhile. All of them end with this process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.arguments import MINUTES, ArgumentParser, setting
from model.config import PRESETS
from model.errors import TextError
from service.launcher.folder_lock import AlreadyRunning
from service.launcher.launcher import run
from service.settings import SettingsError, describe

_MINUTES = PRESETS["quick"]["minutes"]


def main(argv: Sequence[str] | None = None, prog: str = "python -m service") -> int:
    """Run the launcher and return its exit status."""
    args = parser(prog).parse_args(argv)
    try:
        return run(args.corpus, args.minutes)
    except (SettingsError, AlreadyRunning, TextError) as error:
        print(f"error   {error}", file=sys.stderr)
        return 1


def parser(prog: str = "python -m service") -> ArgumentParser:
    """Return the parser of the command line."""
    result = ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog=f"settings, from the environment:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--corpus",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="text files to train a first model on (default: the works of Shakespeare)",
    )
    result.add_argument(
        "--minutes",
        type=setting(MINUTES),
        default=_MINUTES,
        help=f"how long to train a first model (default {_MINUTES:g})",
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
