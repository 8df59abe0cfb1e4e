"""The folder of checkpoints: listing, registering, promotion, roll back and retention.

`promoted.json` beside the files names the checkpoint to serve, and those promoted before it, the newest first. Every
change of it happens under the folder's lock. Retention never removes the promoted checkpoint or its predecessor.
"""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.atomic_files import atomic_write, folder_lock
from model.checkpoints.file_format import read_info
from model.errors import CheckpointError

PROMOTED = "promoted.json"
"""The file that names the promoted checkpoint."""
_HISTORY = 20  # promotions that can be undone
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")  # no name can point outside the folder


def promote(path: Path) -> None:
    """Make a checkpoint the one that is served from its folder.

    Raises:
        CheckpointError: promoted.json cannot be used.
        StorageError: promoted.json cannot be written.
    """
    with folder_lock(path.parent):
        earlier = [name for name in promotion_history(path.parent) if name != path.name]
        _write_history(path.parent, [path.name, *earlier])


def roll_back(folder: Path) -> Path:
    """Undo the last promotion: promote its predecessor. A second call goes one further back.

    Predecessors whose files have been removed are skipped.

    Returns:
        The checkpoint that is promoted now.

    Raises:
        CheckpointError: There is no predecessor.
        StorageError: promoted.json cannot be written.
    """
    with folder_lock(folder):
        remaining = [name for name in promotion_history(folder)[1:] if (folder / name).is_file()]
        if not remaining:
            raise CheckpointError("no earlier promotion exists, or its file has been removed", field=str(folder))
        _write_history(folder, remaining)
    return folder / remaining[0]


def promoted_path(folder: Path) -> Path | None:
    """Return the checkpoint to serve, or None where nothing has been promoted.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    names = promotion_history(folder)
    return folder / names[0] if names else None


def promotion_history(folder: Path) -> list[str]:
    """Return file names: the promoted checkpoint first, then those promoted before it.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    path = folder / PROMOTED
    try:
        record = json.loads(path.read_bytes())
        names = [record["checkpoint"], *record["before"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        expected = "{'checkpoint': name, 'before': [names]}"
        raise CheckpointError(f"cannot be used ({error})", field=str(path), expected=expected) from error
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            expected = "a file name like val1.4302-step004200.safetensors"
            raise CheckpointError(f"names {name!r}", field=str(path), value=name, expected=expected)
    return names


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, the newest first."""
    aged = [(path, _modified(path)) for path in folder.glob("*.safetensors") if not path.name.startswith(".")]
    return [path for path, _ in sorted(aged, key=lambda pair: pair[1], reverse=True)]


def list_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Describe every checkpoint, the newest first: its metadata, or its name and what is wrong with the file.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    history = promotion_history(folder)
    listed = []
    for path in checkpoint_paths(folder):
        try:
            entry = read_info(path).as_dict()
        except CheckpointError as error:
            entry = {"id": None, "name": path.name, "error": str(error)}
        listed.append({**entry, "promoted": history[:1] == [path.name], "predecessor": history[1:2] == [path.name]})
    return listed


def find(folder: Path, fingerprint: str) -> Path | None:
    """Return the newest file of the model with this fingerprint, or None."""
    for path in checkpoint_paths(folder):
        try:
            if read_info(path).fingerprint == fingerprint:
                return path
        except CheckpointError:
            continue
    return None


def register(path: Path, folder: Path) -> Path:
    """Copy a checkpoint into the folder. If another model has the same file name, the copy gets a different one.

    Returns:
        The path of the copy.

    Raises:
        CheckpointError: The file is no checkpoint.
        StorageError: The copy cannot be written.
    """
    info = read_info(path)
    target = folder / path.name
    if target.exists():
        try:
            is_taken = read_info(target).fingerprint != info.fingerprint
        except CheckpointError:
            is_taken = True
        if is_taken:
            target = folder / f"{path.stem}-{info.fingerprint[:8]}.safetensors"
    with atomic_write(target) as copy, open(path, "rb") as source:
        shutil.copyfileobj(source, copy, 1 << 20)
    return target


def prune(folder: Path, keep: int) -> list[str]:
    """Remove all checkpoints but the newest `keep`, the promoted one and its predecessor.

    Returns:
        The names of the removed files.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    protected = set(promotion_history(folder)[:2])
    removed = []
    for path in checkpoint_paths(folder)[keep:]:
        if path.name not in protected:
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _write_history(folder: Path, names: list[str]) -> None:
    with atomic_write(folder / PROMOTED) as file:
        file.write(json.dumps({"checkpoint": names[0], "before": names[1:_HISTORY]}, indent=1).encode())


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, UTC)
