"""Compiles the C here for this machine: python -m model.native.build [--optional]

The library lies beside this file and is named by a hash of its source and flags, so that a changed source is never run
with an old library. It is written whole and then renamed: two processes may build at once. Nothing is compiled at
import; without a library, or on a CPU it was not made for, callers go the slower way.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from model.native.library import COMPILED, HERE, Unsupported, flags, library_path


class BuildError(Exception):
    """Raised when there is no compiler, the compiler fails, or the folder cannot be written."""


def compilers() -> list[list[str]]:
    """Commands that may compile C here, the preferred first."""
    found = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    found += [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
    if importlib.util.find_spec("ziglang"):
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def compile_to(target: Path, compiler: list[str], options: tuple[str, ...], *sources: Path) -> None:
    """Compile `sources`, or else the native code's own, into `target`. Raised: BuildError with the compiler's words."""
    try:
        handle, partial = tempfile.mkstemp(suffix=".so.partial", dir=target.parent)
    except OSError as error:
        raise BuildError(f"cannot write to {target.parent}: {error.strerror}") from error
    os.close(handle)
    try:
        units = sources or tuple(HERE / name for name in COMPILED)
        command = [*compiler, *options, *map(str, units), "-o", partial, "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{shlex.join(command)}\n{done.stderr.strip()}")
        os.chmod(partial, 0o755)
        os.replace(partial, target)
    except OSError as error:
        raise BuildError(f"{compiler[0]}: {error.strerror}") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def build() -> str:
    """Build what is missing; returns a line on what was done. Raised: BuildError; Unsupported on an unknown CPU."""
    target = library_path()
    if target.exists():
        return f"{target.name} is up to date"
    failures = []
    for compiler in compilers():
        try:
            compile_to(target, compiler, flags())
        except BuildError as error:
            failures.append(str(error))
            continue
        return f"built {target.name} with {shlex.join(compiler)}"
    raise BuildError("\n".join(failures) or "no C compiler found: set CC, or install gcc, clang or the ziglang package")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the native code for this machine.")
    parser.add_argument("--optional", action="store_true", help="a failure is told and forgiven: exit with 0")
    options = parser.parse_args()
    try:
        print(build())
    except (BuildError, Unsupported) as error:
        print(f"the native code was not built; generating and training take the slower ways. {error}", file=sys.stderr)
        return 0 if options.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
