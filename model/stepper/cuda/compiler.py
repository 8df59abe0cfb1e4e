"""Compile the kernels for a GPU's architecture with NVRTC, which torch's CUDA builds bring, and keep the result.

    python -m model.stepper.cuda.compiler [sm_90 ...]     # all architectures without an argument

A cubin lies in this folder, or in LONGHAND_CUDA_CACHE, and is named after a hash of the source and the options. It is
written to a temporary file first, so two processes may compile at the same time.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import re
import sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path

from model.atomic_files import atomic_write
from model.errors import StorageError
from model.native import library
from model.stepper.cuda.driver import CudaError

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
CACHE_VARIABLE = "LONGHAND_CUDA_CACHE"
"""The environment variable with the folder of the cubins, where this package's own cannot be written."""
_FOLDER = Path(__file__).parent
SOURCE = _FOLDER / "src" / "kernels.cu"
_SHARED = library.FOLDER / "src" / "kernels"  # headers of the native code
HEADERS = (
    *(_FOLDER / "src" / name for name in ("device.h", "arithmetic.h", "sampling.cuh")),
    *(_SHARED / name for name in ("gates.h", "exp_log.h", "simd.h")),
)
# --fmad=false: a compiler must not fuse a product and a sum that the source separates, or the last bit differs
_OPTIONS = ("--std=c++17", "--fmad=false", "--ptxas-options=-v")


def cubin(architecture: str) -> bytes:
    """The kernels for an architecture: from the cache, or compiled now.

    Raises:
        CudaError: They are not in the cache, and cannot be compiled.
    """
    name = cubin_name(architecture)
    folders = [Path(os.environ[CACHE_VARIABLE])] if os.environ.get(CACHE_VARIABLE) else []
    folders.append(_FOLDER)
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    compiled, _ = compile_for(architecture)
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / name) as file:
                file.write(compiled)
            break
        except (OSError, StorageError):
            continue  # it is compiled again next time
    return compiled


def cubin_name(architecture: str) -> str:
    """The file name of the kernels of the present source."""
    digest = hashlib.sha256(repr(_OPTIONS).encode())
    for path in (SOURCE, *HEADERS):
        digest.update(path.name.encode() + path.read_bytes())
    return f"kernels-{architecture}-{digest.hexdigest()[:16]}.cubin"


def compile_for(architecture: str) -> tuple[bytes, str]:
    """Compile the kernels.

    Returns:
        The cubin, and the compiler's log, which has the registers and spills of each kernel.

    Raises:
        CudaError: NVRTC is not installed, does not know the architecture, or finds an error.
    """
    nvrtc = _nvrtc()
    program = c_void_p()
    names = (c_char_p * len(HEADERS))(*(path.name.encode() for path in HEADERS))
    texts = (c_char_p * len(HEADERS))(*(path.read_bytes() for path in HEADERS))
    options = [f"--gpu-architecture={architecture}", *_OPTIONS]
    arguments = (c_char_p * len(options))(*(option.encode() for option in options))
    _check(
        nvrtc, nvrtc.nvrtcCreateProgram(byref(program), SOURCE.read_bytes(), b"kernels.cu", len(HEADERS), texts, names)
    )
    try:
        code = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
        log = _read(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if code:
            raise CudaError(
                f"the kernels cannot be compiled for {architecture}: {log.strip() or _describe(nvrtc, code)}"
            )
        return _read(nvrtc, "CUBIN", program), log
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def spills(log: str) -> dict[str, tuple[int, int]]:
    """The registers, and the bytes of spilled registers, of each kernel, from the compiler's log."""
    result: dict[str, tuple[int, int]] = {}
    for part in log.split("Compiling entry function '")[1:]:
        stores, loads = (int(n) for n in re.findall(r"(\d+) bytes spill", part)[:2])
        used = re.search(r"Used (\d+) registers", part)
        result[part[: part.index("'")]] = (int(used[1]) if used else 0, stores + loads)
    return result


def _nvrtc() -> ctypes.CDLL:
    """Load NVRTC: from NVIDIA's packages, or from the system."""
    folders = [
        Path(folder) for folder in getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or ()
    ]
    for pattern in ("cu1*/lib/libnvrtc", "cuda_nvrtc/lib/libnvrtc"):
        for folder in folders:
            for builtins in folder.glob(pattern + "-builtins.so*"):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC opens it by its name alone
            for path in sorted(folder.glob(pattern + ".so*"), reverse=True):
                return ctypes.CDLL(str(path))
    for name in ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError("NVRTC is not installed: it comes with torch's CUDA builds, or with the package nvidia-cuda-nvrtc")


def _read(nvrtc: ctypes.CDLL, what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw[: size.value]


def _check(nvrtc: ctypes.CDLL, code: int) -> None:
    if code:
        raise CudaError(f"NVRTC failed: {_describe(nvrtc, code)}")


def _describe(nvrtc: ctypes.CDLL, code: int) -> str:
    nvrtc.nvrtcGetErrorString.restype = c_char_p
    text: bytes = nvrtc.nvrtcGetErrorString(c_int(code))
    return text.decode()


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compile the GPU's kernels.")
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES, metavar="sm_NN")
    parser.add_argument("--optional", action="store_true", help="exit with 0 even when they cannot be compiled")
    options = parser.parse_args(argv)
    for architecture in options.architectures:
        try:
            cubin(architecture)
        except CudaError as error:
            print(f"{architecture}: {error}", file=sys.stderr)
            return 0 if options.optional else 1
        print(f"{architecture}: {cubin_name(architecture)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
