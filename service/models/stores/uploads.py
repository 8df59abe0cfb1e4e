"""Checkpoints that come over HTTP: checked like any file that is to be served, and stored complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from model.atomic_files import folder_lock, is_locked
from model.checkpoints import file_format, registry, self_test
from model.checkpoints.file_format import CheckpointInfo
from model.errors import CheckpointError, StorageError
from service.errors import BadRequest, BodyTooLarge

_CHUNK_BYTES = 1 << 20
_LONGEST_NAME = 100
_PREFIX = "longhand-upload-"
_UNLOCKED_FOR_S = 60.0  # the age of an upload's folder that may be removed: a younger one may not be locked yet
MAX_HEADER_BYTES = 2 * 2**20
"""The longest header of an uploaded file: the largest vocabulary needs half of it, and each list of models reads it."""


def store_upload(
    folder: Path, model_id: str | None, read: Callable[[int], bytes], max_bytes: int
) -> tuple[CheckpointInfo, bool]:
    """Store a checkpoint while it is read. It is not promoted.

    The id in an address is the fingerprint that the weights must have. A repeated upload changes nothing, and no upload
    replaces another checkpoint.

    Args:
        folder: The checkpoints.
        model_id: The fingerprint; None: any.
        read: Returns at most so many of the next bytes; none at the end.
        max_bytes: The largest size.

    Returns:
        The stored checkpoint, and whether it is new.

    Raises:
        BadRequest: The bytes are no checkpoint, are another model, or the model does not pass its self-test.
        BodyTooLarge: They are more than allowed.
        StorageError: The checkpoint cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as temporary, folder_lock(Path(temporary)):
            path = Path(temporary, "upload.safetensors")
            _receive(path, read, max_bytes)
            checkpoint = _checked(path, model_id)
            known = registry.find(folder, checkpoint.fingerprint)
            if known is not None:
                return file_format.read_info(known), False
            name = checkpoint.file_name
            if not registry.is_checkpoint_name(name) or len(name) > _LONGEST_NAME:
                name = f"{checkpoint.fingerprint}.safetensors"
            return file_format.read_info(registry.register(path.rename(path.with_name(name)), folder)), True
    except OSError as e:
        raise StorageError(f"an upload cannot be stored ({e.strerror})", field="temporary folder") from e


def remove_abandoned_uploads() -> None:
    """Remove what uploads left in the temporary folder because their process was killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, StorageError):  # another process removes it, or it is another user's
            if time.time() - folder.stat().st_mtime > _UNLOCKED_FOR_S and not is_locked(folder):
                shutil.rmtree(folder)


def _receive(path: Path, read: Callable[[int], bytes], max_bytes: int) -> None:
    n_bytes = 0
    with open(path, "wb") as file:
        while chunk := read(_CHUNK_BYTES):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                raise BodyTooLarge(max_bytes)
            file.write(chunk)


def _checked(path: Path, model_id: str | None) -> file_format.Checkpoint:
    """Load a checkpoint and run its self-test.

    Raises:
        BadRequest: It cannot be used.
    """
    expected = "a checkpoint file of Longhand (safetensors)"
    try:
        _check_header(path)
        file_format.read_info(path)  # what lists of models read, which `load` reads in part only
        checkpoint = file_format.load(path)
        self_test.verify_checkpoint(checkpoint)
    except CheckpointError as e:
        problem = e.problem.replace(str(path), "the body")
        raise BadRequest("body", e.value, e.expected or expected, problem=problem) from e
    if model_id is not None and checkpoint.fingerprint != model_id:
        problem = f"is the model {checkpoint.fingerprint}"
        raise BadRequest("body", checkpoint.fingerprint, f"{model_id}, as in the address", problem=problem)
    return checkpoint


def _check_header(path: Path) -> None:
    """Check the length of a safetensors header, which the first eight bytes of the file say.

    Raises:
        CheckpointError: It is too long.
    """
    with open(path, "rb") as file:
        n_bytes = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < n_bytes < path.stat().st_size:
        expected = f"at most {MAX_HEADER_BYTES} bytes of metadata"
        raise CheckpointError(f"its header has {n_bytes} bytes", field=f"checkpoint {path}", expected=expected)
