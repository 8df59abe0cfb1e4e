"""The folder of checkpoints: listing, registering, promotion, roll back and retention.

A report on a checkpoint is an HTML file beside it, of the same name.

`promoted.json` names the checkpoint to serve, and those promoted before it, the newest first. Every change of it
happens under the folder's lock, and counts its `version`. Where several machines share the folder, a lock may hold on
one of them alone: there, a process claims the next version in Redis first (service/store/promotions.py).
Retention never removes the promoted checkpoint or its predecessor.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.atomic_files import atomic_write, folder_lock
from model.checkpoints.file_format import CheckpointInfo, read_info
from model.checkpoints.packed_form import remove_orphans
from model.errors import CheckpointError, PromotionConflict, StorageError

PROMOTED = "promoted.json"
"""The file that names the promoted checkpoint."""
_HISTORY = 20  # promotions that can be undone
_MAX_VERSION = 2**53
_FIRST_VERSIONS = 2**40
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")  # no name can point outside the folder


def promote(path: Path, expected_version: int | None = None) -> int:
    """Make a checkpoint the one that is served from its folder.

    Args:
        path: The checkpoint.
        expected_version: What `promotion_version` returned when the caller decided; None: whatever is promoted now.

    Returns:
        The version of promoted.json, as `promotion_version` returns it now.

    Raises:
        PromotionConflict: promoted.json was changed since then.
        CheckpointError: promoted.json cannot be used, or the checkpoint has been removed.
        StorageError: promoted.json cannot be written.
    """
    with folder_lock(path.parent):
        names, version = _read_history(path.parent)
        _check_version(path.parent, version, expected_version)
        if not path.is_file():
            raise CheckpointError("has been removed, so it cannot be promoted", field=f"checkpoint {path}")
        others = [name for name in names if name != path.name and not _is_same_model(path.parent / name, path)]
        promoted_version = _version_after(version)
        _write_history(path.parent, [path.name, *others], promoted_version)
        return promoted_version


def roll_back(folder: Path, expected_version: int | None = None) -> Path:
    """Undo the last promotion: promote its predecessor. A second call goes one further back.

    Predecessors whose files have been removed are skipped.

    Args:
        folder: The folder of the checkpoints.
        expected_version: As in `promote`.

    Returns:
        The checkpoint that is promoted now.

    Raises:
        PromotionConflict: promoted.json was changed since then.
        CheckpointError: There is no predecessor.
        StorageError: promoted.json cannot be written.
    """
    with folder_lock(folder):
        names, version = _read_history(folder)
        _check_version(folder, version, expected_version)
        remaining = [name for name in names[1:] if (folder / name).is_file()]
        if not remaining:
            raise CheckpointError("no earlier promotion exists, or its file has been removed", field=str(folder))
        _write_history(folder, remaining, _version_after(version))
    return folder / remaining[0]


def promotion_version(folder: Path) -> int:
    """Return how often promoted.json has been changed: who decides by what is promoted passes it to `promote`.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    return _read_history(folder)[1]


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
    return _read_history(folder)[0]


def report_path(path: Path) -> Path:
    """Return where the report on a checkpoint is, if one has been made."""
    return path.with_suffix(".html")


def is_checkpoint_name(name: str) -> bool:
    """Whether a name is one of a checkpoint file; such a name cannot point outside its folder."""
    return _NAME.fullmatch(name) is not None


def checkpoint_paths(folder: Path) -> list[Path]:
    """Return the checkpoint files of a folder, the newest first."""
    aged = [(path, _modified(path)) for path in folder.glob("*.safetensors") if not path.name.startswith(".")]
    return [path for path, _ in sorted(aged, key=lambda pair: pair[1], reverse=True)]


def list_checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Describe every model, the newest first: its metadata, or its name and what is wrong with the file.

    Several files of one model, whose losses were measured on different parts, are one entry: that of the promoted
    file, or of the newest.

    Raises:
        CheckpointError: promoted.json cannot be used.
    """
    history = promotion_history(folder)
    listed = []
    for path in checkpoint_paths(folder):
        try:
            entry = read_info(path).as_dict()
        except CheckpointError as error:
            entry = {"id": None, "name": path.name, "error": str(error).replace(str(path), path.name)}
        listed.append({**entry, "promoted": history[:1] == [path.name], "predecessor": history[1:2] == [path.name]})
    chosen: dict[str, dict[str, Any]] = {}
    for entry in listed:
        key = entry["id"] or entry["name"]
        if key not in chosen or entry["promoted"] or (entry["predecessor"] and not chosen[key]["promoted"]):
            chosen[key] = entry  # a dictionary keeps the place of the newest
    return list(chosen.values())


def find(folder: Path, fingerprint: str, read: Callable[[Path], CheckpointInfo] = read_info) -> Path | None:
    """Return the promoted or else the newest file of the model with this fingerprint, or None.

    Args:
        folder: The folder of the checkpoints.
        fingerprint: The model's id.
        read: Reads the metadata of a file; it may remember what it has read.
    """
    promoted = [path for name in _history_or_nothing(folder)[:1] if (path := folder / name).is_file()]
    for path in [*promoted, *checkpoint_paths(folder)]:
        try:
            if read(path).fingerprint == fingerprint:
                return path
        except CheckpointError:
            continue
    return None


def remove(folder: Path, fingerprint: str) -> bool:
    """Delete every file of a model; False if there is none.

    Raises:
        CheckpointError: It is promoted, or what a roll back promotes.
        StorageError: A file cannot be deleted.
    """
    with folder_lock(folder):
        protected = promotion_history(folder)[:2]
        paths = []
        for path in checkpoint_paths(folder):
            with contextlib.suppress(CheckpointError):
                if read_info(path).fingerprint == fingerprint:
                    paths.append(path)
        for path in paths:
            if path.name in protected:
                is_promoted = path.name == protected[0]
                problem = "is served" if is_promoted else "is what a roll back would serve"
                raise CheckpointError(f"{problem}; promote another model before you delete it", field=path.name)
        for path in paths:
            try:
                path.unlink(missing_ok=True)
                report_path(path).unlink(missing_ok=True)
            except OSError as e:
                raise StorageError(f"cannot be deleted ({e.strerror})", field=path.name) from e
        remove_orphans(folder)
    return bool(paths)


def register(path: Path, folder: Path) -> Path:
    """Copy a checkpoint into the folder. If another model has the same file name, the copy gets a different one.

    Returns:
        The path of the copy.

    Raises:
        CheckpointError: The file is no checkpoint.
        StorageError: The copy cannot be written.
    """
    info = read_info(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"cannot be created ({e.strerror})", field=str(folder)) from e
    with folder_lock(folder):  # of two that come at once with one name, the second sees the first
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
        StorageError: The folder cannot be opened.
    """
    removed: list[str] = []
    if not folder.is_dir():
        return removed
    with folder_lock(folder):  # nothing is promoted between the look at what is and the last removal
        protected = set(promotion_history(folder)[:2])
        for path in checkpoint_paths(folder)[keep:]:
            if path.name not in protected:
                path.unlink(missing_ok=True)
                report_path(path).unlink(missing_ok=True)
                removed.append(path.name)
        remove_orphans(folder)
    return removed


def _read_history(folder: Path) -> tuple[list[str], int]:
    """Read the names and the version of promoted.json; a file of an earlier layout has version 0."""
    path = folder / PROMOTED
    try:
        record = json.loads(path.read_bytes())
        names, version = [record["checkpoint"], *record["before"]], record.get("version", 0)
    except FileNotFoundError:
        return [], 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected = "{'checkpoint': name, 'before': [names], 'version': number}"
        raise CheckpointError(f"cannot be used ({error})", field=str(path), expected=expected) from error
    for name in names:
        if not isinstance(name, str) or not is_checkpoint_name(name):
            expected = "a file name like val1.4302-step004200.safetensors"
            raise CheckpointError(f"names {name!r}", field=str(path), value=name, expected=expected)
    if type(version) is not int or not 0 <= version < _MAX_VERSION:
        raise CheckpointError("has no usable version", field=str(path), expected=f"a number below {_MAX_VERSION}")
    return names, version


def _history_or_nothing(folder: Path) -> list[str]:
    try:
        return promotion_history(folder)
    except CheckpointError:
        return []


def _is_same_model(path: Path, other: Path) -> bool:
    """Whether two files have the same weights; False where one cannot be read."""
    try:
        return read_info(path).fingerprint == read_info(other).fingerprint
    except CheckpointError:
        return False


def _check_version(folder: Path, version: int, expected: int | None) -> None:
    if expected is not None and version != expected:
        raise PromotionConflict("another checkpoint was promoted in the meantime", field=str(folder / PROMOTED))


def _version_after(version: int) -> int:
    """Count a change. A folder begins anywhere: it is not taken for another one, or for the one it was before."""
    return version + 1 if version else 1 + secrets.randbelow(_FIRST_VERSIONS)


def _write_history(folder: Path, names: list[str], version: int) -> None:
    record = {"checkpoint": names[0], "before": names[1:_HISTORY], "version": version}
    with atomic_write(folder / PROMOTED) as file:
        file.write(json.dumps(record, indent=1).encode())


def _modified(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, UTC)
