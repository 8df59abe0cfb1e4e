"""The packed form of a checkpoint: its weights as the native stepper lays them out, beside the checkpoint's file.

Reading a checkpoint, packing its weights and testing the result take most of the time of a load. They are done once,
and what they made is kept with a hash. It is used again only while nothing has changed that it depends on: the
checkpoint's weights and file, the arithmetic, the native code and the instruction set that were tested.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from model.atomic_files import atomic_write
from model.checkpoints.file_format import Checkpoint
from model.config import WeightPrecision
from model.errors import StorageError
from model.native.library import Unsupported, choose_instruction_set, library_path, load_library
from model.stepper.cpu.pack_weights import Packed, PackedNetwork

FORMAT = "longhand-packed-1"
VerifiedForms = dict[Path, "_PackedFile"]
"""The packed forms whose hash a process has computed."""
_MAX_VERIFIED = 5000  # of some kilobytes each
_MAX_HEADER_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "I8": np.dtype("i1")}
SUFFIX = ".packed"
"""The end of the file's name, after the checkpoint's and the precision."""


def packed_path(checkpoint_path: Path, precision: WeightPrecision) -> Path:
    """Return where the packed form of a checkpoint lies."""
    return checkpoint_path.with_name(f"{checkpoint_path.stem}.{precision}{SUFFIX}")


class DamagedForm(Exception):
    """Raised when the arrays of a packed form are not those that were written; the checkpoint is loaded whole then."""


def read(
    path: Path, checkpoint: Checkpoint, fingerprint: str, precision: WeightPrecision, verified: VerifiedForms
) -> PackedNetwork | None:
    """Return the packed form of a checkpoint, or None if there is none that can be used.

    Its arrays are read when they are filled, right where they are used; a damaged one raises DamagedForm then.

    Args:
        path: The checkpoint's file.
        checkpoint: What it holds; the weights are not used.
        fingerprint: The one that the file says it has.
        precision: Of the weights.
        verified: The forms whose hash was right before; it is not computed again while the file is the same.
    """
    try:
        file = _packed_file(packed_path(path, precision), verified)
        if file.metadata["format"] != FORMAT or file.metadata["made_of"] != _made_of(path, fingerprint, precision):
            return None
    except (Unsupported, OSError, KeyError, ValueError, TypeError, RecursionError):
        return None
    return PackedNetwork(checkpoint.config, _item_end(checkpoint), precision, partial(file.fill, verified))


def write(path: Path, network: PackedNetwork, fingerprint: str) -> bool:
    """Store the packed form of a checkpoint that was loaded from its file and tested here.

    Args:
        path: The checkpoint's file. Another one may have taken its place since it was read.
        network: What was loaded.
        fingerprint: Of the weights that were loaded.

    Returns:
        Whether it could be written; without it, loads are slower.
    """
    assert isinstance(network.packed, Packed), "it was read from a packed form"
    arrays = network.packed.arrays()
    with contextlib.suppress(StorageError, Unsupported, SafetensorError, OSError):
        made_of = _made_of(path, fingerprint, network.precision)
        metadata = {
            "format": FORMAT,
            "made_of": made_of,
            "sha256": _digest((name, a.dtype, a.shape, a.data) for name, a in arrays.items()),
        }
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


def _packed_file(path: Path, verified: VerifiedForms) -> _PackedFile:
    """Return a packed form whose header has been read: now, or before if the file is the same.

    Raises:
        OSError, KeyError, ValueError, TypeError, RecursionError: It is none.
    """
    known = verified.get(path)
    return known if known is not None and known.identity == _identity(os.stat(path)) else _PackedFile.open(path)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An array of a packed form, and where it lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _PackedFile:
    """A packed form whose header has been read.

    The safetensors library reads such files as tensors of torch: a small model's took longer than all the rest of its
    load, and a copy of a large one's.
    """

    path: Path
    identity: tuple[int, ...]
    metadata: dict[str, str]
    entries: dict[str, _Entry]

    @classmethod
    def open(cls, path: Path) -> _PackedFile:
        """Read the header.

        Raises:
            OSError, KeyError, ValueError, TypeError, RecursionError: It is none.
        """
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            if n_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {n_bytes} bytes")
            header = json.loads(file.read(n_bytes))
            identity = _identity(os.fstat(file.fileno()))
        metadata = header.pop("__metadata__")
        entries = {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            entries[name] = _Entry(
                _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + n_bytes + first, 8 + n_bytes + end
            )
        return cls(path, identity, metadata, entries)

    def fill(self, verified: VerifiedForms, memory: Mapping[str, memoryview]) -> None:
        """Read the arrays, which must have the sizes of the memory, and their hash.

        Raises:
            DamagedForm: They are others.
        """
        if memory.keys() != self.entries.keys():
            raise DamagedForm(f"{self.path.name}: has {sorted(self.entries)}, expected {sorted(memory)}")
        try:
            self._read(memory)
        except (OSError, ValueError) as error:
            raise DamagedForm(f"{self.path.name}: {error}") from error
        if verified.get(self.path) == self:
            return
        parts = ((name, entry.dtype, entry.shape, memory[name]) for name, entry in self.entries.items())
        if _digest(parts) != self.metadata["sha256"]:
            raise DamagedForm(f"{self.path.name}: its hash is another one")
        if len(verified) >= _MAX_VERIFIED:
            verified.clear()
        verified[self.path] = self

    def _read(self, memory: Mapping[str, memoryview]) -> None:
        """Read the arrays, which follow one another without a gap, into their places by one call.

        Raises:
            OSError: The file cannot be read.
            ValueError: An array has another size or place, or the file is another one, or ends before its arrays.
        """
        entries = sorted(self.entries.items(), key=lambda item: item[1].first)
        end = entries[0][1].first
        for name, entry in entries:
            if (entry.first, entry.end) != (end, end + len(memory[name])):
                raise ValueError(
                    f"{name} lies at {entry.first} to {entry.end}, expected {end} to {end + len(memory[name])}"
                )
            end = entry.end
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _identity(os.fstat(file)) != self.identity:
                raise ValueError("was replaced while it was read")
            os.lseek(file, entries[0][1].first, os.SEEK_SET)
            left = [memory[name] for name, _ in entries]
            while left:
                n = os.readv(file, left)
                if not n:
                    raise ValueError("the file ends before its arrays")
                left = _after(left, n)
        finally:
            os.close(file)


def _after(parts: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left of some memory when so many bytes of it have been filled."""
    for i, part in enumerate(parts):
        if n_bytes < len(part):
            return [part[n_bytes:], *parts[i + 1 :]]
        n_bytes -= len(part)
    return []


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


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


def _digest(arrays: Iterable[tuple[str, np.dtype[Any], tuple[int, ...], memoryview]]) -> str:
    """Return the hash of arrays by name: of their types, shapes and values."""
    digest = hashlib.sha256()
    for name, dtype, shape, data in sorted(arrays, key=itemgetter(0)):
        digest.update(f"{name} {dtype} {shape}".encode())
        digest.update(data)
    return digest.hexdigest()
