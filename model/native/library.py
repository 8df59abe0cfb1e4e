"""Find and load the compiled C code. Nothing is compiled here; build.py does that.

The library lies in this folder and is named after a hash of its source and compiler flags, so a changed source is
never run with an old library.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import platform
from functools import lru_cache
from pathlib import Path

from model.errors import ConfigError

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted((FOLDER / "src").rglob("*.[ch]")))
KERNELS = FOLDER / "src" / "kernels" / "kernels.c"
"""Compiled once for each instruction set; the other sources once."""
# -ffp-contract=off: a compiler must not fuse a product and a sum that the source separates, or the last bit differs
_ARITHMETIC = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno")
_LINKAGE = ("-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_AVX512_VNNI = ("-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni")
_AVX512_BF16 = (*_AVX512_VNNI, "-mavx512bf16")
_X86 = {
    "avx512_amx": (*_AVX512_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
    "avx512_bf16": _AVX512_BF16,
    "avx512_vnni": _AVX512_VNNI,
    "avx2_vnni": ("-mavx2", "-mfma", "-mavxvnni"),
    "avx2": ("-mavx2", "-mfma"),
    "plain": ("-DLONGHAND_PLAIN",),
}
_ARM = {
    "neon_dotprod": ("-mcpu=generic+dotprod",),
    "neon": (),
    "plain": ("-DLONGHAND_PLAIN",),
}
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": _X86,
    "amd64": _X86,
    "aarch64": _ARM,
    "arm64": _ARM,
}
INSTRUCTION_SET_VARIABLE = "LONGHAND_INSTRUCTION_SET"
"""The environment variable that forces an instruction set, for tests and measurements."""
MAX_LAYERS = 8
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
        ("item_end", ctypes.c_int32),
        ("weights", POINTER * (MAX_LAYERS + 1)),
        ("initial", POINTER * (MAX_LAYERS + 1)),
        ("scale", POINTER * (MAX_LAYERS + 1)),
        ("instruction_set", ctypes.c_char_p),
    ]


class AutomatonArrays(ctypes.Structure):
    """lh_automaton in api.h: the tables of an Automaton."""

    _fields_ = [
        ("states", ctypes.c_int32),
        ("classes", ctypes.c_int32),
        *[(name, POINTER) for name in ("class_of", "next", "distance", "continuation")],
    ]


class BlockArrays(ctypes.Structure):
    """lh_block in api.h: a Block, the arrays of its result, and where an invalid value is."""

    _fields_ = [
        ("rows", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("window_size", ctypes.c_int32),
        ("n_automata", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("least_steps", ctypes.c_int32),
        ("interrupt", POINTER),
        *[(name, POINTER) for name in ("slots", "row_steps", "forced_ids", "random_values", "sampling", "score_ids")],
        *[(name, POINTER) for name in ("windows", "bias_starts", "bias_ids", "bias_values")],
        *[(name, POINTER) for name in ("automata", "automaton_of", "states", "budgets", "mask_logprobs")],
        *[(name, POINTER) for name in ("made_steps", "ids", "logprobs")],
        ("steps_run", ctypes.c_int32),
        ("bad_row", ctypes.c_int32),
        ("bad_step", ctypes.c_int32),
    ]


class TextsArrays(ctypes.Structure):
    """lh_texts in api.h: texts that are only read."""

    _fields_ = [("texts", ctypes.c_int32), *[(name, POINTER) for name in ("ids", "starts", "logprobs")]]


class PassArrays(ctypes.Structure):
    """lh_pass in api.h: a window of a training step."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("rows", "steps", "layers", "hidden", "embed", "vocab", "products")],
        *[(name, ctypes.c_int32) for name in ("embed_threshold", "weight_threshold", "output_threshold")],
        *[(name, POINTER) for name in ("ids", "targets")],
        *[(name, ctypes.c_int64) for name in ("ids_stride", "targets_stride")],
        *[(name, POINTER) for name in ("starts", "reset_draws")],
        ("reset", ctypes.c_float),
        ("embed_draws", POINTER),
        ("weight_draws", POINTER * MAX_LAYERS),
        ("output_draws", POINTER * MAX_LAYERS),
        *[(name, POINTER) for name in ("parameters", "gradients", "state")],
        ("loss", ctypes.c_double),
        ("instruction_set", ctypes.c_char_p),
    ]


class OptimizerArrays(ctypes.Structure):
    """lh_optimizer in api.h: the tensors and factors of an optimizer's step."""

    _fields_ = [
        ("tensors", ctypes.c_int32),
        ("shards", ctypes.c_int32),
        *[(name, POINTER) for name in ("sizes", "gradients", "parameters", "means", "squares", "averages", "keeps")],
        *[(name, ctypes.c_float) for name in ("divisor", "max_norm", "new_mean", "new_square", "step_size")],
        *[(name, ctypes.c_float) for name in ("square_scale", "epsilon", "average_weight")],
        ("chunks", ctypes.c_int64),
        ("norms", POINTER),
        ("threads", ctypes.c_int32),
        ("instruction_set", ctypes.c_char_p),
    ]


class FieldLayout(ctypes.Structure):
    """lh_field in report_layout.c: where a field of a structure lies, in bytes."""

    _fields_ = [("name", ctypes.c_char_p), ("offset", ctypes.c_int32), ("size", ctypes.c_int32)]


def flags() -> tuple[str, ...]:
    """The compiler's flags for every source."""
    return _ARITHMETIC + _LINKAGE


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """The instruction sets that kernels.c is compiled for on this machine, the best first, and the flags of each.

    Raises:
        Unsupported: There is no native code for this machine's CPU.
    """
    machine = platform.machine().lower()
    if machine not in INSTRUCTION_SETS:
        known = ", ".join(sorted(INSTRUCTION_SETS))
        raise Unsupported(f"there is no native code for a CPU of type {machine!r}; there is for {known}")
    return INSTRUCTION_SETS[machine]


@lru_cache(maxsize=1)
def library_path() -> Path:
    """The path of the library of the source as a process finds it first, whether it is built or not.

    Raises:
        Unsupported: There is no native code for this machine's CPU.
    """
    digest = hashlib.sha256(repr((flags(), instruction_sets())).encode())
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
    library.lh_instruction_set.argtypes = [ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)]
    library.lh_instruction_set.restype = ctypes.c_char_p
    library.lh_open.argtypes, library.lh_open.restype = [ctypes.POINTER(ModelArrays)], POINTER
    library.lh_array.argtypes = [POINTER, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)]
    library.lh_array.restype = POINTER
    library.lh_filled.argtypes, library.lh_filled.restype = [POINTER], None
    library.lh_close.argtypes, library.lh_close.restype = [POINTER], None
    library.lh_run.argtypes, library.lh_run.restype = [POINTER, ctypes.POINTER(BlockArrays)], ctypes.c_int
    library.lh_threads.argtypes = [POINTER, ctypes.c_int32, ctypes.c_int32]
    library.lh_threads.restype = ctypes.c_int32
    library.lh_groups.argtypes, library.lh_groups.restype = [POINTER], ctypes.c_int32
    library.lh_bytes.argtypes, library.lh_bytes.restype = [POINTER], ctypes.c_int64
    library.lh_read.argtypes, library.lh_read.restype = [POINTER, ctypes.c_int32, POINTER], None
    library.lh_write.argtypes, library.lh_write.restype = [POINTER, ctypes.c_int32, POINTER], None
    library.lh_score_open.argtypes, library.lh_score_open.restype = [POINTER, ctypes.POINTER(TextsArrays)], POINTER
    library.lh_score_run.argtypes = [POINTER, ctypes.c_int32, ctypes.c_int32]
    library.lh_score_run.restype = ctypes.c_int64
    library.lh_score_close.argtypes, library.lh_score_close.restype = [POINTER], None
    library.lh_train.argtypes, library.lh_train.restype = [ctypes.POINTER(PassArrays)], ctypes.c_int
    library.lh_optimize.argtypes, library.lh_optimize.restype = [ctypes.POINTER(OptimizerArrays)], ctypes.c_int
    library.lh_sample.argtypes = [ctypes.c_char_p, POINTER, ctypes.c_int32, POINTER, ctypes.c_double, POINTER]
    library.lh_sample.restype = ctypes.c_int32
    library.lh_layout.argtypes, library.lh_layout.restype = [], ctypes.POINTER(FieldLayout)
    return library


@lru_cache(maxsize=8)
def available_instruction_sets(library: ctypes.CDLL) -> list[str]:
    """The instruction sets of a library that this CPU has, the best first. "plain" is always there."""
    names: list[str] = []
    available = ctypes.c_int32()
    for i in itertools.count():
        name = library.lh_instruction_set(i, ctypes.byref(available))
        if name is None:
            return names
        if available.value:
            names.append(name.decode())
    raise AssertionError("not reached")


def choose_instruction_set(library: ctypes.CDLL) -> str:
    """The instruction set to run: the one that LONGHAND_INSTRUCTION_SET names, else the best one.

    Raises:
        Unsupported: This CPU has none but plain C, which is for tests.
        ConfigError: The variable names none that this CPU has.
    """
    available = available_instruction_sets(library)
    forced = os.environ.get(INSTRUCTION_SET_VARIABLE)
    if forced and forced not in available:
        problem, expected = f"this CPU has no {forced!r}", "one of " + ", ".join(available)
        raise ConfigError(problem, field=INSTRUCTION_SET_VARIABLE, value=forced, expected=expected)
    if not forced and available in ([], ["plain"]):
        raise Unsupported("the native code needs a CPU with AVX2 and FMA")
    return forced or available[0]
