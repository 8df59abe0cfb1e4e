"""Create .venv from the locked versions: python3 -m deploy.environment [--no-sweeps] [--tests] [--browser].

It needs Python 3.11 to 3.14 and nothing else. An environment whose set-up was interrupted is made anew, because pip
takes a package for whole that it was about to replace. Each step prints a line.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deploy.environment import lock, torch_build
from deploy.environment.pip import Pip, SetupError

SUPPORTED = ((3, 11), (3, 14))  # as requires-python in pyproject.toml
_UNFINISHED = ".unfinished"  # a file in the environment while packages are installed


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.environment", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".venv"), help="the environment (default .venv)")
    parser.add_argument(
        "--torch", choices=torch_build.CHOICES, default="auto", help="the build of torch (default auto)"
    )
    parser.add_argument("--no-sweeps", action="store_true", help="leave out what sweeps and plots alone need")
    parser.add_argument("--tests", action="store_true", help="install what the tests need, too")
    parser.add_argument("--browser", action="store_true", help="install what the page's tests need, too")
    args = parser.parse_args()
    start = time.monotonic()
    unfinished = args.folder / _UNFINISHED
    try:
        _check_python()
        pip = _environment(args.folder)
        unfinished.touch()
        torch_build.install(pip, args.torch)
        names = [
            "runtime",
            *([] if args.no_sweeps else ["sweeps"]),
            *(["tests"] if args.tests else []),
            *(["browser"] if args.browser else []),
        ]
        for name in names:
            pip.install("--no-deps", "--require-hashes", "--requirement", str(lock.path(name)))
    except SetupError as error:
        unfinished.unlink(missing_ok=True)  # pip has ended by itself, and left nothing half done
        print(f"setup   {error}", file=sys.stderr)
        return 1
    unfinished.unlink()
    size = torch_build.gigabytes(args.folder)
    _say(f"{', '.join(names)}: the locked versions are installed; {time.monotonic() - start:.0f} s, {size} on disk")
    return 0


def _check_python() -> None:
    """Refuse a Python that the locked packages have no wheels for."""
    oldest, newest = (".".join(map(str, version)) for version in SUPPORTED)
    if not SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        this = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python {oldest} to {newest} is needed, and this is {this}: add PYTHON=/path/to/python3")


def _environment(folder: Path) -> Pip:
    """Create the environment, or keep the one that is there and works."""
    python = folder / "bin" / "python"
    check = f"import sys, pip; print({SUPPORTED[0]} <= sys.version_info[:2] <= {SUPPORTED[1]})"
    try:
        works = subprocess.run([str(python), "-c", check], capture_output=True, text=True).stdout.strip()
    except OSError:
        works = ""
    if works != "True" or (folder / _UNFINISHED).exists():
        version = ".".join(map(str, sys.version_info[:3]))
        _say(f"a new environment in {folder}, with Python {version}; this takes a few minutes, once")
        done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            reason = (done.stdout + done.stderr).strip().splitlines()
            hint = f"on Debian and Ubuntu install {package}" if "ensurepip" in "".join(reason) else "".join(reason[-1:])
            raise SetupError(f"python -m venv failed: {hint}")
    return Pip(python)


def _say(text: str) -> None:
    print(f"setup   {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
