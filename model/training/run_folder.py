"""The folder of a run: its settings, its metrics as JSON lines, and the state from which it can be resumed.

    run.json            the settings, written once
    metrics.jsonl       a line for each progress report; an incomplete last line is ignored
    budget.json         the decisions about the length of a run in minutes
    resume.safetensors  everything that the next step depends on: tensors, and JSON in the metadata; no code

Every file but metrics.jsonl is replaced atomically, so a reader finds a complete file at any moment, after a kill -9
too. A run that was started before a field was renamed is still read: see `_OLD_NAMES`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from model.atomic_files import atomic_write
from model.checkpoints.file_format import open_safetensors
from model.config import BF16_ORDERS
from model.errors import CheckpointError, ConfigError, StorageError
from model.evaluation.validation_sample import Validation
from model.training.schedule import BudgetDecision

_FORMAT = "longhand-run-1"
_OLD_NAMES = {
    "run.json": {"parts": "n_shards", "about": "metadata"},
    "metadata": {"store": "checkpoint_folder"},
    "metrics.jsonl": {"best": "best_val_loss"},
    "budget.json": {"done": "fraction", "total": "total_steps"},
    "resume.safetensors": {
        "best": "best_val_loss",
        "best_name": "best_checkpoint",
        "beaten_name": "superseded_checkpoint",
        "since_best": "validations_since_best",
    },
}
"""By file: the names that fields had in the first release of the format, and their names now."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A progress report of a run: sent to the callback of `fit`, and written to metrics.jsonl."""

    step: int
    total_steps: int  # an estimate until the budget has been converted to steps
    epochs: float  # passes over the training part so far
    train_loss: float  # nats per character, running mean over the last windows
    val_loss: float | None  # nats per character on a sample, by the corpus's protocol; None between validations
    best_val_loss: float | None  # the lowest so far; None before the first validation
    lr: float
    chars_per_s: float
    elapsed_s: float
    best_checkpoint: Path | None = None  # with the weights of best_val_loss; the next better one replaces it
    sample: str | None = None  # text generated at a validation, if sample_chars was given
    val_loss_per_item: float | None = None  # nats per item of a list

    @property
    def is_best(self) -> bool:
        """Whether this is a validation with the lowest loss so far."""
        return self.val_loss is not None and self.val_loss == self.best_val_loss

    @property
    def remaining_s(self) -> float | None:
        """The estimated seconds to the end of the run."""
        if not self.step or not self.total_steps:
            return None
        return self.elapsed_s * (self.total_steps - self.step) / self.step

    @property
    def validation(self) -> Validation | None:
        """The losses of the validation that this report is about, None between validations."""
        return validation_of(asdict(self))

    def metrics(self) -> dict[str, Any]:
        """Return the report as a line of metrics.jsonl."""
        return {name: value for name, value in asdict(self).items() if name not in ("best_checkpoint", "sample")}


ProgressCallback = Callable[[Progress], None]


def validation_of(metrics: Mapping[str, Any]) -> Validation | None:
    """Return the validation in a line of metrics.jsonl, or None for a line between validations."""
    if metrics["val_loss"] is None:
        return None
    return Validation(
        step=metrics["step"],
        elapsed_s=metrics["elapsed_s"],
        train_loss=metrics["train_loss"],
        val_loss=metrics["val_loss"],
        is_best=metrics["val_loss"] == metrics["best_val_loss"],
        val_loss_per_item=metrics.get("val_loss_per_item"),
    )


class RunFolder:
    """Reads and writes the files of a run."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is read or created."""
        self.path = path

    def create(self, settings: Mapping[str, Any]) -> None:
        """Write the settings of a new run.

        Raises:
            ConfigError: The folder has a run already.
            StorageError: The file cannot be written.
        """
        if (self.path / "run.json").exists():
            raise ConfigError("has a run already; resume it, or choose another folder", field=f"run {self.path}")
        with atomic_write(self.path / "run.json") as f:
            f.write(json.dumps({"format": _FORMAT, **settings}, indent=1).encode())

    def settings(self) -> dict[str, Any]:
        """Read the settings: model, train, corpus_sha256, device, n_shards, native, bf16_order and metadata.

        Raises:
            CheckpointError: The folder has no run, or one of another format.
        """
        try:
            settings = _renamed("run.json", json.loads((self.path / "run.json").read_bytes()))
            if (file_format := settings.pop("format")) != _FORMAT:
                raise ValueError(f"format is {file_format!r}, expected {_FORMAT!r}")
            if (order := settings.get("bf16_order")) not in (None, *BF16_ORDERS):
                raise ValueError(f"bf16_order is {order!r}, expected {' or '.join(map(repr, BF16_ORDERS))}")
        except (OSError, ValueError, KeyError, AttributeError, RecursionError) as e:
            raise CheckpointError(f"not a run's folder ({e})", field=f"run {self.path}", expected="a run.json") from e
        settings["metadata"] = _renamed("metadata", settings.get("metadata") or {})
        settings.setdefault("native", False)  # a run from before there was a native layer
        has_pairs = settings["native"] and (settings.get("train") or {}).get("precision") == "bf16"
        settings.setdefault("bf16_order", "pairs" if has_pairs else None)  # before there were tiles
        return settings

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Check that the run was started with the same settings.

        Raises:
            ConfigError: It was not; the message names every difference.
        """
        saved = self.settings()
        differences = []
        for key, value in settings.items():
            before, now = saved.get(key), json.loads(json.dumps(value))
            if isinstance(before, dict) and isinstance(now, dict):
                pairs = [(name, before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())]
            else:
                pairs = [(key, before, now)]
            differences += [f"{name} is {old!r} in the run, {new!r} now" for name, old, new in pairs if old != new]
        if differences:
            problem = f"cannot be resumed with other settings: {'; '.join(differences)}; {self.warm_start_hint()}"
            raise ConfigError(problem, field=f"run {self.path}")

    def warm_start_hint(self) -> str:
        """Return the command that trains on from the run's best checkpoint, for errors about a run that cannot go on.

        Raises:
            CheckpointError: The folder has no run, or a damaged one.
        """
        metadata = self.settings()["metadata"]
        resume_state = self.read_resume_state()
        name = resume_state[1].get("best_checkpoint") if resume_state is not None else None
        checkpoint = Path(metadata.get("checkpoint_folder") or ".") / name if name else "CHECKPOINT"
        corpus = metadata.get("corpus") or []  # in older run folders one path, or None
        corpus = [corpus] if isinstance(corpus, str) else corpus
        command = shlex.join(["python", "-m", "model", "train", *corpus, "--warm-start", str(checkpoint)])
        return f"to train on with other settings, begin a new run with its weights: {command}"

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append a line to the metrics.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as e:
            raise StorageError(f"cannot be written ({e.strerror})", field=str(path)) from e

    def metrics(self) -> list[dict[str, Any]]:
        """Read the metrics so far, without an incomplete last line."""
        try:
            text = (self.path / "metrics.jsonl").read_text("utf-8")
        except OSError:
            return []
        return [_renamed("metrics.jsonl", json.loads(line)) for line in text.split("\n")[:-1]]

    def validations(self) -> list[Validation]:
        """Read the validations so far."""
        return [v for line in self.metrics() if (v := validation_of(line)) is not None]

    def truncate_metrics(self, step: int) -> None:
        """Delete the metrics after a step: those steps will be repeated."""
        lines = [line for line in self.metrics() if line["step"] <= step]
        with atomic_write(self.path / "metrics.jsonl") as f:
            f.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def write_budget(self, decisions: list[BudgetDecision]) -> None:
        """Replace the decisions about the length of the run.

        Raises:
            StorageError: The file cannot be written; the previous one is unchanged.
        """
        with atomic_write(self.path / "budget.json") as f:
            f.write(json.dumps([asdict(d) for d in decisions]).encode())

    def read_budget(self) -> list[BudgetDecision]:
        """Read the decisions about the length of the run; none where there is no such file.

        Raises:
            CheckpointError: The file is damaged.
        """
        path = self.path / "budget.json"
        try:
            return [BudgetDecision(**_renamed("budget.json", d)) for d in json.loads(path.read_bytes())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
            raise CheckpointError(f"cannot be used ({e})", field=str(path)) from e

    def write_resume_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace the state from which the run can be resumed.

        Raises:
            StorageError: The file cannot be written; the previous one is unchanged.
        """
        metadata = {"format": _FORMAT, "values": json.dumps(dict(values))}
        data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata=metadata)
        with atomic_write(self.path / "resume.safetensors") as f:
            f.write(data)

    def read_resume_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read the state from which the run can be resumed, or None when it was killed before it wrote one.

        Raises:
            CheckpointError: The file is damaged or of another format.
        """
        path = self.path / "resume.safetensors"
        if not path.exists():
            return None
        with open_safetensors(path, _FORMAT, "resume state") as (file, metadata):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
            return tensors, _renamed("resume.safetensors", json.loads(metadata["values"]))

    def best_checkpoint_name(self) -> str | None:
        """Return the file name of the run's best checkpoint so far; None before the first one.

        Raises:
            CheckpointError: The resume state is damaged or of another format.
        """
        path = self.path / "resume.safetensors"
        if not path.exists():
            return None
        with open_safetensors(path, _FORMAT, "resume state") as (_, metadata):
            name = _renamed("resume.safetensors", json.loads(metadata["values"])).get("best_checkpoint")
            return name if isinstance(name, str) else None


def new_run_folder(parent: Path) -> Path:
    """Create a folder for a new run, named by the time.

    Raises:
        StorageError: It cannot be created.
    """
    name = datetime.now().strftime("%Y%m%d-%H%M%S")
    for n in range(1000):
        path = parent / (name if not n else f"{name}-{n}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as e:
            raise StorageError(f"cannot be created ({e.strerror})", field=str(path)) from e
    raise StorageError("has a thousand runs of this second", field=str(parent))


def _renamed(file: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the names that the fields of this file have now."""
    names = _OLD_NAMES[file]
    return {names.get(name, name): value for name, value in values.items()}
