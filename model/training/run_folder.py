"""A run's folder: its settings, its metrics as JSON lines, and the point from which it can go on.

    run.json            the settings, written once
    metrics.jsonl       a line for each progress report; a torn last line is not read
    budget.json         what was decided about the length of a run in minutes
    resume.safetensors  everything that the next step depends on: tensors, and JSON in the metadata; nothing can run

All but metrics.jsonl are replaced whole, so whoever reads finds a whole file at any moment, a kill -9 included.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from model.atomic_files import atomic_write
from model.checkpoints.file_format import open_safetensors
from model.errors import CheckpointError, ConfigError, StorageError
from model.training.schedule import Decision

_FORMAT = "longhand-run-1"


class RunFolder:
    """Reads and writes the files of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new run. Raised: ConfigError where there is a run already."""
        if (self.path / "run.json").exists():
            raise ConfigError(f"run {self.path}: there is a run already; resume it, or choose another folder")
        with atomic_write(self.path / "run.json") as f:
            f.write(json.dumps({"format": _FORMAT, **settings}, indent=1).encode())

    def settings(self) -> dict[str, Any]:
        """What `begin` was given. Raised: CheckpointError when the folder is no run."""
        try:
            found: dict[str, Any] = json.loads((self.path / "run.json").read_bytes())
            if found.pop("format") != _FORMAT:
                raise ValueError("another format")
            found.setdefault("native", False)  # a run from before there was another way
            return found
        except (OSError, ValueError, KeyError, AttributeError) as e:
            raise CheckpointError(f"run {self.path}: not a run's folder, expected a run.json in it ({e})") from e

    def check_same(self, settings: Mapping[str, Any]) -> None:
        """Raised: ConfigError naming every setting in which this run was begun otherwise."""
        begun = self.settings()
        differences = []
        for key, value in settings.items():
            before, now = begun.get(key), json.loads(json.dumps(value))
            if isinstance(before, dict) and isinstance(now, dict):
                pairs = [(n, before.get(n), now.get(n)) for n in sorted(before.keys() | now.keys())]
            else:
                pairs = [(key, before, now)]
            differences += [f"{n} is {old!r} in the run, {new!r} now" for n, old, new in pairs if old != new]
        if differences:
            raise ConfigError(f"run {self.path}: cannot go on with other settings: {'; '.join(differences)}")

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to the metrics. Raised: StorageError when it cannot be written."""
        try:
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise StorageError(f"cannot be written ({e.strerror})", field=str(self.path / "metrics.jsonl")) from e

    def metrics(self) -> list[dict[str, Any]]:
        """The lines so far, without a torn last one."""
        try:
            text = (self.path / "metrics.jsonl").read_text("utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be made again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        with atomic_write(self.path / "metrics.jsonl") as f:
            f.write("".join(json.dumps(line) + "\n" for line in kept).encode())

    def write_budget(self, decisions: list[Decision]) -> None:
        with atomic_write(self.path / "budget.json") as f:
            f.write(json.dumps([asdict(d) for d in decisions]).encode())

    def budget(self) -> list[Decision]:
        try:
            return [Decision(**d) for d in json.loads((self.path / "budget.json").read_bytes())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError) as e:
            raise CheckpointError(f"{self.path / 'budget.json'}: cannot be used ({e})") from e

    def write_point(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace the point to go on from. Raised: StorageError when it cannot be written; the old one stays."""
        meta = {"format": _FORMAT, "values": json.dumps(dict(values))}
        data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=meta)
        with atomic_write(self.path / "resume.safetensors") as f:
            f.write(data)

    def point(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The point to go on from, or None when the run was killed before its first. Raised: CheckpointError."""
        path = self.path / "resume.safetensors"
        if not path.exists():
            return None
        with open_safetensors(path, _FORMAT, "resume point") as (file, metadata):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
            return tensors, json.loads(metadata["values"])


def new_folder(parent: Path) -> Path:
    """A folder for a new run, named by the time, which no other run has."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for n in range(1000):
        path = parent / (stamp if not n else f"{stamp}-{n}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as e:
            raise StorageError(f"cannot be created ({e.strerror})", field=str(path)) from e
    raise CheckpointError(f"{parent}: has a thousand runs of this second")
