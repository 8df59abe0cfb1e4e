"""A GPU for tests: the CUDA kernels compiled for the CPU, inside a library with the functions of NVIDIA's driver.

It runs the same source as a GPU, and checks every access for races, bounds and alignment: see emulator.h.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

from model.stepper.cuda import compiler, driver

_FOLDER = Path(__file__).parent
_OPTIONS = (
    "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-DLONGHAND_EMULATOR",
    "-fvisibility=hidden",
)  # fmt: skip
FAULT_VARIABLE = "LONGHAND_EMULATOR_FAULT"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def build(folder: Path, old: str = "", new: str = "", *, optimize: bool = True) -> Path:
    """Build the library, as `folder`/libcuda.so.1, and a cache of cubins in which the compiler finds its kernels.

    Args:
        folder: Where it is written.
        old: A text in the kernels' source that is replaced, to plant a fault.
        new: What it is replaced with.
        optimize: Whether it is to run fast, which takes the compiler longer than a few blocks take without it.
    """
    sources = folder / "src"
    sources.mkdir(parents=True)
    result = 0
    for path in [*compiler.HEADERS, *(_FOLDER.glob("emulator.*")), compiler.SOURCE]:
        text = path.read_text()
        if old and path in (compiler.SOURCE, *compiler.HEADERS):
            result += text.count(old)
            text = text.replace(old, new)
        (sources / path.name).write_text(text)
    assert not old or result, f"the kernels have no {old!r}"
    fma = ["-mfma"] if os.uname().machine == "x86_64" else []
    target = folder / driver.LIBRARY
    options = [*_OPTIONS, "-O2" if optimize else "-O0", *fma]
    subprocess.run([str(COMPILER), *options, str(sources / "emulator.cpp"), "-o", str(target)], check=True)
    (folder / compiler.cubin_name("sm_90")).write_bytes(b"the kernels are in the emulated driver")
    return target


def environment(library: Path, fault: str = "") -> dict[str, str]:
    """The environment in which a process finds the emulated GPU."""
    variables = {"LD_LIBRARY_PATH": str(library.parent), compiler.CACHE_VARIABLE: str(library.parent)}
    return {**variables, FAULT_VARIABLE: fault} if fault else variables


class EmulatedGpu:
    """What the library tells of itself."""

    def __init__(self, library: Path) -> None:
        """Load it."""
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._library.emulator_message.restype = ctypes.c_char_p
        self._library.emulator_allocated.restype = ctypes.c_size_t

    def message(self) -> str:
        """The first violation since the last `reset`."""
        message: bytes = self._library.emulator_message()
        return message.decode()

    def allocated(self) -> int:
        """The bytes of device memory in use."""
        allocated: int = self._library.emulator_allocated()
        return allocated

    def arguments_bytes(self) -> int:
        """The size of the kernels' arguments."""
        size: int = self._library.emulator_args_size()
        return size

    def reset(self) -> None:
        """Forget violations and sticky errors."""
        self._library.emulator_reset()
