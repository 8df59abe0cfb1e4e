"""The locked versions, and the command that refreshes them: make lock [UPGRADE=1].

Each file in locks/ names every package with its version and the hashes of its files, for all supported machines:

    runtime   what the service and the trainer need, without torch
    sweeps    what sweeps and plots need besides: not in the image of the api and the trainer
    torch     torch as it is by default, and on Linux the CUDA libraries that this build needs
    tests     what the tests need besides
    browser   what the page's tests need besides
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "runtime": "requirements.txt",
    "sweeps": "requirements.txt",
    "tests": "tests/requirements.txt",
    "browser": "tests/e2e/page/requirements.txt",
}
FOR_SWEEPS = ("optuna", "matplotlib")  # as NOT_IN_THE_IMAGE in model/cli
_OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
_HEADER = "# {about}. Made by `make lock`: change the requirements, not this file.\n"
_ABOUT = {
    "runtime": "The locked versions of requirements.txt, without torch and what is for sweeps and plots alone",
    "sweeps": "The locked versions of optuna and matplotlib in requirements.txt, with what they need besides",
    "torch": "The locked torch in its default build, with what it needs on Linux",
    "tests": "The locked versions of tests/requirements.txt, without those of requirements.txt",
    "browser": "The locked versions of tests/e2e/page/requirements.txt, without those of the others",
}


def path(name: str) -> Path:
    """Return the file of a lock: runtime, sweeps, torch, tests or browser."""
    return ROOT / "deploy" / "environment" / "locks" / f"{name}.txt"


def packages(text: str) -> dict[str, str]:
    """Return the entries of a lock by their first line, which names package, version and marker."""
    entries: dict[str, str] = {}
    for block in re.split(r"\n(?=[a-z])", "\n" + text):
        lines = [line for line in block.strip().splitlines() if not line.lstrip().startswith("#")]
        if lines:
            entries[lines[0].rstrip("\\ ")] = "\n".join(lines) + "\n"
    return entries


def refresh(upgrade: bool) -> None:
    """Resolve the requirements again, and write the locks. Without `upgrade`, locked versions stay where they fit."""
    with tempfile.TemporaryDirectory(prefix="longhand-") as temporary:
        folder = Path(temporary)
        everything = folder / "everything.txt"
        if not upgrade:
            everything.write_text("".join(file.read_text() for file in sorted(path("tests").parent.glob("*.txt"))))
        _compile(folder, everything, *SOURCES.values())
        taken: set[str] = set()
        for name, source in SOURCES.items():
            result = folder / f"{name}.txt"
            result.write_text(everything.read_text())  # the versions to prefer: those of the whole
            _compile(folder, result, _without_sweeps(folder) if name == "runtime" else source)
            locked = packages(result.read_text())
            of_torch = {line: entry for line, entry in locked.items() if _OF_TORCH.match(line)}
            if name == "runtime":
                _write("torch", of_torch)
            taken |= set(of_torch)
            _write(name, {line: entry for line, entry in locked.items() if line not in taken})
            taken |= set(locked)


def _without_sweeps(folder: Path) -> str:
    """Write the requirements without those that are for sweeps alone, and return the file's path."""
    lines = (ROOT / "requirements.txt").read_text().splitlines(keepends=True)
    file = folder / "service.in"
    file.write_text("".join(line for line in lines if line.partition("==")[0] not in FOR_SWEEPS))
    return str(file)


def _compile(folder: Path, output: Path, *sources: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-config", "--fork-strategy", "fewest"]
    command += ["--output-file", str(output), *sources]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "UV_CACHE_DIR": str(folder / "cache")})


def _write(name: str, entries: dict[str, str]) -> None:
    path(name).parent.mkdir(exist_ok=True)
    path(name).write_text(_HEADER.format(about=_ABOUT[name]) + "".join(entries[line] for line in sorted(entries)))


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description="Refresh the locked versions.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit the requirements")
    try:
        refresh(parser.parse_args().upgrade)
    except subprocess.CalledProcessError as error:
        print(f"lock    {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
