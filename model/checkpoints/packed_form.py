"""The packed form of a checkpoint: its weights as the native stepper lays them out, beside the checkpoint's file.

Reading a checkpoint, packing its weights and testing the result take most of the time of a load. They are done once,
and what they made is kept with a hash. It is used again only while nothing has changed that it depends on: the
checkpoint's weights and file, the arithmetic, the native code and the instruction set that were tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from model.atomic_files import atomic_write
from model.checkpoints.file_format import Checkpoint
from model.config import WeightPrecision
from model.errors import StorageError
from model.native.library import Unsupported, choose_instruction_set, library_path, load_library
from model.stepper.cpu.pack_weights import Packed, PackedNetwork

FORMAT = "longhand-packed-1"
VerifiedForms = dict[Path, tuple[int | str, ...]]
"""What identifies the packed forms whose hash a process has computed."""
_MAX_VERIFIED = 20_000
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1")}
SUFFIX = ".packed"
"""The end of the file's name, after the checkpoint's and the precision."""


def packed_path(checkpoint_path: Path, precision: WeightPrecision) -> Path:
    """Return where the packed form of a checkpoint lies."""
    return checkpoint_path.with_name(f"{checkpoint_path.stem}.{precision}{SUFFIX}")


def read(
    path: Path, checkpoint: Checkpoint, fingerprint: str, precision: WeightPrecision, verified: VerifiedForms
) -> PackedNetwork | None:
    """Return the packed form of a checkpoint, or None if there is none that can be used.

    Args:
        path: The checkpoint's file.
        checkpoint: What it holds; the weights are not used.
        fingerprint: The one that the file says it has.
        precision: Of the weights.
        verified: The forms whose hash was right before; it is not computed again while the file is the same.
    """
    packed = packed_path(path, precision)
    try:
        metadata, arrays = _map(packed)
        if metadata["format"] != FORMAT or metadata["made_of"] != _made_of(path, fingerprint, precision):
            return None
        if not _is_verified(packed, arrays, metadata["sha256"], verified):
            return None
        return PackedNetwork(checkpoint.config, _item_end(checkpoint), precision, Packed.from_arrays(arrays))
    except (Unsupported, OSError, KeyError, ValueError, TypeError, RecursionError):
        return None


def write(path: Path, network: PackedNetwork, fingerprint: str) -> bool:
    """Store the packed form of a checkpoint that was loaded from its file and tested here.

    Args:
        path: The checkpoint's file. Another one may have taken its place since it was read.
        network: What was loaded.
        fingerprint: Of the weights that were loaded.

    Returns:
        Whether it could be written; without it, loads are slower.
    """
    arrays = network.packed.arrays()
    with contextlib.suppress(StorageError, Unsupported, SafetensorError, OSError):
        made_of = _made_of(path, fingerprint, network.precision)
        metadata = {"format": FORMAT, "made_of": made_of, "sha256": _digest(arrays)}
        data = safetensors.numpy.save(arrays, metadata)
        with atomic_write(packed_path(path, network.precision)) as file:
            file.write(data)
        return True
    return False


def remove_orphans(folder: Path) -> None:
    """Delete the packed forms of checkpoints that are gone."""
    for path in folder.glob(f"*{SUFFIX}"):
        stem = path.name.removesuffix(SUFFIX).rpartition(".")[0]
        if not (folder / f"{stem}.safetensors").exists():
            path.unlink(missing_ok=True)


def _map(path: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Map a safetensors file into memory: its metadata, and its arrays, which are read-only.

    The safetensors library does the same by way of torch's tensors, for three times as long as the rest of a load.

    Raises:
        OSError, KeyError, ValueError, TypeError, RecursionError: It is no complete file of arrays.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        dtype, (first, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        count, rest = divmod(end - first, dtype.itemsize)
        if first < 0 or count < 0 or rest:
            raise ValueError(f"{name}: {first} to {end} is no array of {dtype}")
        arrays[name] = np.frombuffer(content, dtype, count, begin + first).reshape(entry["shape"])
    return metadata, arrays


def _is_verified(path: Path, arrays: dict[str, NDArray[np.generic]], sha256: str, verified: VerifiedForms) -> bool:
    """Whether the arrays of a packed form have their hash."""
    status = os.stat(path)
    identity = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, sha256)
    if verified.get(path) == identity:
        return True
    if _digest(arrays) != sha256:
        return False
    if len(verified) >= _MAX_VERIFIED:
        verified.clear()
    verified[path] = identity
    return True


def _item_end(checkpoint: Checkpoint) -> int | None:
    return None if checkpoint.items is None else checkpoint.vocab.start


def _made_of(path: Path, fingerprint: str, precision: WeightPrecision) -> str:
    """Identify all that a packed form depends on.

    Raises:
        Unsupported: This machine has no native code.
        OSError: The checkpoint's file is gone.
    """
    status = os.stat(path)
    library = library_path()
    instruction_set = choose_instruction_set(load_library(library))
    return f"{fingerprint} {status.st_size} {status.st_mtime_ns} {precision} {library.name} {instruction_set}"


def _digest(arrays: dict[str, NDArray[np.generic]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
