"""The folder of checkpoints as a whole: what is in it, what comes in, what is kept.

Rules: a file comes in whole or not at all; the promoted one and its predecessor are never removed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from model.checkpoints.checkpoint import FORMAT, atomic, promotions
from model.config import ModelConfig
from model.errors import CheckpointError, ModelError


@dataclass(frozen=True, slots=True)
class Summary:
    """What a checkpoint's header says of it; its weights have not been read, so they may be damaged."""

    path: Path
    fingerprint: str
    config: ModelConfig
    run: dict[str, Any]
    size_bytes: int

    def as_dict(self) -> dict[str, Any]:
        run = self.run
        return {
            "id": self.fingerprint,
            "name": self.path.name,
            "val_loss": run["val_loss"],
            "val_protocol": run.get("val_protocol", "b"),
            "val_characters": run["val_characters"],
            "train_loss": run["train_loss"],
            "step": run["step"],
            "network": {
                "cell": self.config.cell,
                "n_layers": self.config.n_layers,
                "n_hidden": self.config.n_hidden,
                "n_embed": self.config.n_embed,
                "vocab_size": self.config.vocab_size,
                "n_parameters": self.config.n_parameters,
            },
            "options": run["options"],
            "corpus_sha256": run["corpus_sha256"],
            "created": run["created"],
            "bytes": self.size_bytes,
        }


def summary(path: Path) -> Summary:
    """Read a checkpoint's header. Raised: CheckpointError when there is none of ours."""
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
        if meta.get("format") != FORMAT:
            raise CheckpointError(f"checkpoint {path}: format is {meta.get('format')!r}, expected {FORMAT!r}")
        config, run = ModelConfig(**json.loads(meta["config"])), json.loads(meta["run"])
        found = Summary(path, meta["fingerprint"], config, run, path.stat().st_size)
        found.as_dict()  # every field that is shown must be there
        return found
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {path}: no such file") from e
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"checkpoint {path}: not a whole safetensors file ({e})") from e
    except (KeyError, ValueError, TypeError, ModelError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path}: its metadata cannot be used ({type(e).__name__}: {e})") from e


def files(folder: Path) -> list[Path]:
    """The checkpoint files, the newest first."""
    found = [(path, _age(path)) for path in folder.glob("*.safetensors") if not path.name.startswith(".")]
    return [path for path, _ in sorted(found, key=lambda each: each[1], reverse=True)]


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every checkpoint as a dict, the newest first: its summary, or its name and what is wrong with it."""
    names = promotions(folder)
    listed = []
    for path in files(folder):
        try:
            entry = summary(path).as_dict()
        except CheckpointError as e:
            entry = {"id": None, "name": path.name, "error": str(e)}
        listed.append({**entry, "promoted": names[:1] == [path.name], "predecessor": names[1:2] == [path.name]})
    return listed


def find(folder: Path, fingerprint: str) -> Path | None:
    """The newest file of the model with this fingerprint."""
    for path in files(folder):
        try:
            if summary(path).fingerprint == fingerprint:
                return path
        except CheckpointError:
            continue
    return None


def publish(path: Path, folder: Path) -> Path:
    """Bring a checkpoint in from elsewhere. A name that is taken by another model is made different.

    Raised: CheckpointError, with nothing half-written.
    """
    found = summary(path)
    target = folder / path.name
    if target.exists():
        try:
            other = summary(target).fingerprint != found.fingerprint
        except CheckpointError:
            other = True
        if other:
            target = folder / f"{path.stem}-{found.fingerprint[:8]}.safetensors"
    with atomic(target) as out, open(path, "rb") as source:
        shutil.copyfileobj(source, out, 1 << 20)
    return target


def prune(folder: Path, keep: int) -> list[str]:
    """Remove all but the newest `keep` checkpoints, the promoted one and its predecessor; what was removed."""
    protected = set(promotions(folder)[:2])
    removed = []
    for path in files(folder)[keep:]:
        if path.name not in protected:
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _age(path: Path) -> datetime:
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return datetime.fromtimestamp(0, UTC)
