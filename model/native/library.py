"""Find and load the compiled C code. Nothing is compiled here; build.py does that.

The library lies in this folder and is named after a hash of its source and compiler flags, so a changed source is
never run with an old library.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted((FOLDER / "src").glob("*.[ch]")))
# -ffp-contract=off: a compiler must not fuse a product and a sum that the source separates, or the last bit differs
_ARITHMETIC = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno")
_LINKAGE = ("-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_FOR_MACHINE: dict[str, tuple[str, ...]] = {
    "x86_64": ("-mavx2", "-mfma"),
    "amd64": ("-mavx2", "-mfma"),
    "aarch64": (),  # NEON is always there
    "arm64": (),
}
MAX_LAYERS = 8
LANES = 8
"""The floats of a vector (simd.h)."""
POINTER = ctypes.c_void_p


class Unsupported(Exception):
    """Raised when this model or machine has no native code. The message says why; callers use torch instead."""


class ModelArrays(ctypes.Structure):
    """lh_model in api.h: a packed network."""

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
    """lh_block in api.h: a Block, the arrays of its result, and where an invalid value is."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        *[(name, POINTER) for name in ("slots", "row_steps", "forced_ids", "random_values", "sampling", "score_ids")],
        *[(name, POINTER) for name in ("ids", "logprobs")],
        ("bad_row", ctypes.c_int32),
        ("bad_step", ctypes.c_int32),
    ]


class LstmLayerArrays(ctypes.Structure):
    """lh_lstm_layer in api.h: the arrays of one LSTM layer over T characters."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("rows", "steps", "hidden")],
        *[(name, POINTER) for name in ("ids", "inputs", "weights", "h0", "c0", "h", "c", "gates")],
        *[(name, POINTER) for name in ("d_h", "d_gates", "d_inputs")],
    ]


class FieldLayout(ctypes.Structure):
    """lh_field in layout.c: where a field of a structure lies, in bytes."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_int32), ("size", ctypes.c_int32)]


def flags() -> tuple[str, ...]:
    """The compiler's flags on this machine.

    Raises:
        Unsupported: There is no native code for this machine's CPU.
    """
    machine = platform.machine().lower()
    if machine not in _FOR_MACHINE:
        known = ", ".join(sorted(_FOR_MACHINE))
        raise Unsupported(f"there is no native code for a CPU of type {machine!r}; there is for {known}")
    return _ARITHMETIC + _LINKAGE + _FOR_MACHINE[machine]


def library_path() -> Path:
    """The path of the library of the present source, whether it is built or not.

    Raises:
        Unsupported: There is no native code for this machine's CPU.
    """
    digest = hashlib.sha256(" ".join(flags()).encode())
    for source in SOURCES:
        digest.update(source.name.encode() + source.read_bytes())
    return FOLDER / f"kernel-{digest.hexdigest()[:16]}.so"


@lru_cache(maxsize=8)
def load_library(path: Path) -> ctypes.CDLL:
    """Load a built library and declare its functions.

    Raises:
        Unsupported: The library is not built, cannot be loaded, or needs instructions that this CPU lacks.
    """
    if not path.exists():
        raise Unsupported("the native code is not built; run python -m model.native.build")
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
    for layer in (library.lh_lstm_forward, library.lh_lstm_backward):
        layer.argtypes, layer.restype = [ctypes.POINTER(LstmLayerArrays)], ctypes.c_int
    library.lh_sample.argtypes = [POINTER, ctypes.c_int32, POINTER, ctypes.c_double, POINTER]
    library.lh_sample.restype = ctypes.c_int32
    library.lh_layout.argtypes, library.lh_layout.restype = [], ctypes.POINTER(FieldLayout)
    return library
