"""Build the WebAssembly module of exported pages: python -m model.export.page.build.

It needs the package ziglang, whose clang knows WebAssembly, and writes step.wasm.base64: first the hash of the sources,
then the module. The file is committed, so that no user needs a compiler.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from model.atomic_files import atomic_write
from model.export.page.render import WASM

COMPILER = "ziglang==0.17.1"
"""The package that builds the committed module."""

_SOURCE = Path(__file__).with_name("step.c")
_KERNELS = Path(__file__).parents[2] / "native" / "src" / "kernels"
_OPTIONS = ("-target", "wasm32-wasi", "-O3", "-msimd128", "-mbulk-memory", "-mbulk-memory-opt", "-ffp-contract=off",
            "-fno-stack-protector", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-unused-parameter")  # fmt: skip


def source_hash() -> str:
    """Return the hash of everything that the module is made from."""
    files = (_SOURCE, *(_KERNELS / name for name in ("gates.h", "sampling.h", "exp_log.h")))
    digest = hashlib.sha256(" ".join((COMPILER, *_OPTIONS)).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def build() -> bytes:
    """Compile and link the module, and return it.

    Raises:
        subprocess.CalledProcessError: The compiler failed.
    """
    zig = [sys.executable, "-m", "ziglang"]
    with tempfile.TemporaryDirectory() as folder:
        unit, module = Path(folder, "step.o"), Path(folder, "step.wasm")
        subprocess.run([*zig, "cc", *_OPTIONS, "-c", str(_SOURCE), "-o", str(unit)], check=True)
        subprocess.run([*zig, "wasm-ld", str(unit), "-o", str(module), "--no-entry", "--strip-all"], check=True)
        return module.read_bytes()


def main() -> int:
    """Run the command; returns the exit status."""
    lines = textwrap.wrap(base64.b64encode(build()).decode(), 120)
    with atomic_write(WASM) as file:
        file.write("\n".join([source_hash(), *lines, ""]).encode())
    print(WASM)
    return 0


if __name__ == "__main__":
    sys.exit(main())
