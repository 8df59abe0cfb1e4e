"""Where the compiled kernel lies, and loading it. Nothing is compiled here: build does that."""

from __future__ import annotations

import ctypes
import hashlib
import platform
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
COMPILED = ("stepper.c", "window.c")
SOURCES = (*COMPILED, "gemm.h", "gates.h", "sampling.h", "pool.h", "simd.h")
# contract=off: a product and a sum that the source keeps apart stay apart, or compilers would disagree in the last bit
_ARITHMETIC = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno")
_LINKAGE = ("-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_FOR_MACHINE: dict[str, tuple[str, ...]] = {
    "x86_64": ("-mavx2", "-mfma"),
    "amd64": ("-mavx2", "-mfma"),
    "aarch64": (),  # NEON is part of it
    "arm64": (),
}
MAX_LAYERS = 8
LANES = 8  # of a vector: simd.h
POINTER = ctypes.c_void_p


class Unsupported(Exception):
    """Raised when this model or machine has no native code; the message says why. Use the slower way."""


class ModelArrays(ctypes.Structure):
    """lh_model in stepper.c."""

    _fields_ = [
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("vocab", ctypes.c_int32),
        ("slots", ctypes.c_int32),
        ("is_int8", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("weights", POINTER * (MAX_LAYERS + 1)),
        ("initial", POINTER * (MAX_LAYERS + 1)),
        ("scale", POINTER * (MAX_LAYERS + 1)),
        ("activation_scale", ctypes.c_float),
    ]


class BlockArrays(ctypes.Structure):
    """lh_block in stepper.c."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        *[(name, POINTER) for name in ("slots", "row_steps", "forced_ids", "random_values", "temperature", "top_k")],
        *[(name, POINTER) for name in ("top_p", "min_p", "ids", "logprobs")],
        ("bad_row", ctypes.c_int32),
        ("bad_step", ctypes.c_int32),
    ]


class WindowArrays(ctypes.Structure):
    """lh_window in window.c."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("rows", "steps", "hidden")],
        *[(name, POINTER) for name in ("ids", "inputs", "weights", "h0", "c0", "h", "c", "gates")],
        *[(name, POINTER) for name in ("d_h", "d_gates", "d_inputs")],
    ]


def flags() -> tuple[str, ...]:
    """The compiler's flags on this machine. Raised: Unsupported where there is no kernel for it."""
    machine = platform.machine().lower()
    if machine not in _FOR_MACHINE:
        known = ", ".join(sorted(_FOR_MACHINE))
        raise Unsupported(f"there is no native code for a CPU of type {machine!r}; there is for {known}")
    return _ARITHMETIC + _LINKAGE + _FOR_MACHINE[machine]


def library_path() -> Path:
    """Where the library of the present source lies, built or not. Raised: Unsupported, as `flags`."""
    digest = hashlib.sha256(" ".join(flags()).encode())
    for name in SOURCES:
        digest.update((HERE / name).read_bytes())
    return HERE / f"kernel-{digest.hexdigest()[:16]}.so"


@lru_cache(maxsize=8)
def load_library(path: Path) -> ctypes.CDLL:
    """Load a built kernel. Raised: Unsupported when it is not there or this CPU cannot run it."""
    if not path.exists():
        raise Unsupported("the native code is not built; python -m model.native.build")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unsupported(f"the native code cannot be loaded: {error}") from error
    if not library.lh_supported():
        raise Unsupported("the native code needs a CPU with AVX2 and FMA")
    library.lh_open.argtypes, library.lh_open.restype = [ctypes.POINTER(ModelArrays)], POINTER
    library.lh_close.argtypes, library.lh_close.restype = [POINTER], None
    library.lh_run.argtypes, library.lh_run.restype = [POINTER, ctypes.POINTER(BlockArrays)], ctypes.c_int
    library.lh_read.argtypes, library.lh_read.restype = [POINTER, ctypes.c_int32, POINTER], None
    library.lh_write.argtypes, library.lh_write.restype = [POINTER, ctypes.c_int32, POINTER], None
    for window in (library.lh_window_forward, library.lh_window_backward):
        window.argtypes, window.restype = [ctypes.POINTER(WindowArrays)], ctypes.c_int
    real, whole = ctypes.c_double, ctypes.c_int32
    library.lh_sample.argtypes = [POINTER, whole, real, whole, real, real, real, POINTER]
    library.lh_sample.restype = whole
    return library
