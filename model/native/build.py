"""Compile the C code for this machine.

    python -m model.native.build [--optional]

The library is written to a temporary file and then renamed, so two processes may build at the same time. Nothing is
compiled at import; without a library, or on a CPU that it was not compiled for, callers use torch.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.atomic_files import atomic_write
from model.errors import StorageError
from model.native.library import KERNELS, SOURCES, Unsupported, flags, instruction_sets, library_path


class BuildError(Exception):
    """Raised when there is no compiler, the compiler fails, or the folder cannot be written."""


def compilers() -> list[list[str]]:
    """The commands that may compile C here, the preferred first."""
    commands = [shlex.split(os.environ["CC"])] if os.environ.get("CC") else []
    commands += [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]
    if importlib.util.find_spec("ziglang"):
        commands.append([sys.executable, "-m", "ziglang", "cc"])
    return commands


def compile_to(target: Path, compiler: list[str], options: tuple[str, ...], *sources: Path) -> None:
    """Compile `sources`, or the native code's own if there are none, into the shared library `target`.

    Raises:
        BuildError: The compiler failed, with its output; or the folder cannot be written.
        Unsupported: There is no native code for this machine's CPU.
    """
    try:
        with atomic_write(target) as file, tempfile.TemporaryDirectory() as folder:
            units = sources or tuple(compile_units(compiler, options, Path(folder)))
            _run([*compiler, *options, *map(str, units), "-o", file.name, "-lm"])
            os.chmod(file.name, 0o755)  # noqa: S103 - every account that runs the program loads it
    except StorageError as error:
        raise BuildError(str(error)) from error


def compile_units(compiler: list[str], options: tuple[str, ...], folder: Path) -> list[Path]:
    """Compile the native code's own sources into `folder`; return the object files.

    An instruction set that the compiler does not know is left out. An older compiler makes a library without it.
    """
    compile_only = [*compiler, *(option for option in options if option != "-shared"), "-c"]

    def compile_kernels(name: str, set_options: tuple[str, ...]) -> str | None:
        command = [*compile_only, *set_options, f"-DKERNELS={name}", str(KERNELS), "-o", str(folder / f"{name}.o")]
        try:
            _run(command)
        except BuildError as error:
            return str(error)
        return None

    sets = instruction_sets()
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        failures = dict(zip(sets, workers.map(compile_kernels, sets, sets.values()), strict=True))
    compiled = [name for name, failure in failures.items() if failure is None]
    if not [name for name in compiled if name != "plain"]:
        raise BuildError("\n".join(failure for failure in failures.values() if failure))
    known = f"-DLONGHAND_SETS(SET)={' '.join(f'SET({name})' for name in compiled)}"
    units = [source for source in SOURCES if source.suffix == ".c" and source != KERNELS]
    objects = [folder / f"{source.stem}.o" for source in units]
    for source, target in zip(units, objects, strict=True):
        _run([*compile_only, known, str(source), "-o", str(target)])
    return [*objects, *(folder / f"{name}.o" for name in compiled)]


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if result.returncode:
        raise BuildError(f"{shlex.join(command)}\n{result.stderr.strip()}")


def build() -> str:
    """Build the library unless it is there, with the first compiler that succeeds.

    Returns:
        A line that says what was done.

    Raises:
        BuildError: No compiler was found, or all of them failed.
        Unsupported: There is no native code for this machine's CPU.
    """
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
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile the native code for this machine.")
    parser.add_argument("--optional", action="store_true", help="exit with 0 even when the build fails")
    options = parser.parse_args()
    try:
        print(build())
    except (BuildError, Unsupported) as error:
        print(
            f"the native code was not built; generating and training use torch, which is slower. {error}",
            file=sys.stderr,
        )
        return 0 if options.optional else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
