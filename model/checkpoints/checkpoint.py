"""One self-contained file a model: weights, config, vocabulary, losses, the corpus's hash and the run's options.

The file is safetensors with JSON in its metadata, so nothing in it can run. It is written under a temporary name,
synced and renamed, so a reader sees a whole file or none. `promoted.json` beside the files names the one to serve, and
the ones before it, the newest first; whoever changes it holds a lock on the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.config import ModelConfig
from model.errors import CheckpointError, ModelError
from model.network.char_rnn import CharRNN
from model.text.vocab import Vocabulary

FORMAT = "longhand-1"
PROMOTED = "promoted.json"
_REMEMBERED = 20  # promotions that can be undone
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.safetensors")  # a name that cannot leave the folder


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and where it came from."""

    config: ModelConfig
    vocab: Vocabulary
    weights: Mapping[str, Tensor]
    val_loss: float  # nats per character, protocol (b)
    val_characters: int  # how many characters val_loss was measured on
    step: int
    train_loss: float  # nats per character, a running mean over the last windows
    corpus_sha256: str
    options: Mapping[str, Any]  # the TrainConfig of the run
    self_test: str = ""  # what the trainer saw it write, see model.checkpoints.self_test; empty when nobody looked
    created: str = ""  # UTC, ISO 8601

    @property
    def file_name(self) -> str:
        return f"val{self.val_loss:.4f}-step{self.step:06d}.safetensors"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when a weight, the shape or the vocabulary does."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        digest.update(self.vocab.characters.encode("utf-8", "surrogatepass"))
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def network(self, dtype: torch.dtype = torch.float32) -> CharRNN:
        """The network with these weights, ready to evaluate."""
        with torch.device("meta"):  # its own random start would take longer than all the rest
            network = CharRNN(self.config)
        network.load_state_dict({name: w.to(dtype, copy=True) for name, w in self.weights.items()}, assign=True)
        return network.eval().requires_grad_(False)

    def save(self, folder: Path) -> Path:
        """Write the file; raised: CheckpointError naming the path when the disk refuses, with nothing half-written."""
        stamped = replace(self, created=self.created or datetime.now(UTC).isoformat(timespec="seconds"))
        meta = {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config)),
            "vocab": json.dumps(self.vocab.characters),
            "fingerprint": self.fingerprint,
            "run": json.dumps(
                {
                    "val_loss": self.val_loss,
                    "val_protocol": "b",
                    "val_characters": self.val_characters,
                    "train_loss": self.train_loss,
                    "step": self.step,
                    "corpus_sha256": self.corpus_sha256,
                    "options": dict(self.options),
                    "self_test": self.self_test,
                    "created": stamped.created,
                }
            ),
        }
        data = save({k: v.detach().cpu().contiguous() for k, v in self.weights.items()}, metadata=meta)
        path = folder / self.file_name
        with atomic(path) as f:
            f.write(data)
        return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and check that it is whole and ours.

    Raised: CheckpointError when it is missing, truncated, foreign, or does not match its own fingerprint.
    """
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            if meta.get("format") != FORMAT:
                raise CheckpointError(f"checkpoint {path}: format is {meta.get('format')!r}, expected {FORMAT!r}")
            weights = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - safe_open is not a mapping
        run = json.loads(meta["run"])
        checkpoint = Checkpoint(
            config=ModelConfig(**json.loads(meta["config"])),
            vocab=Vocabulary(json.loads(meta["vocab"])),
            weights=weights,
            val_loss=float(run["val_loss"]),
            val_characters=int(run["val_characters"]),
            step=int(run["step"]),
            train_loss=float(run["train_loss"]),
            corpus_sha256=run["corpus_sha256"],
            options=run["options"],
            self_test=run.get("self_test", ""),
            created=run["created"],
        )
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {path}: no such file") from e
    except (OSError, SafetensorError) as e:
        raise CheckpointError(f"checkpoint {path}: not a whole safetensors file ({e})") from e
    except (KeyError, ValueError, TypeError, ModelError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {path}: its metadata cannot be used ({type(e).__name__}: {e})") from e
    _check_weights(path, checkpoint)
    if checkpoint.fingerprint != meta.get("fingerprint"):
        raise CheckpointError(
            f"checkpoint {path}: fingerprint is {checkpoint.fingerprint}, its metadata says "
            f"{meta.get('fingerprint')!r}: the file was changed after it was written"
        )
    return checkpoint


def _check_weights(path: Path, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if len(checkpoint.vocab) != config.vocab_size:
        raise CheckpointError(f"checkpoint {path}: {len(checkpoint.vocab)} characters, config says {config.vocab_size}")
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in CharRNN(config).state_dict().items()}
    found = {name: tuple(t.shape) for name, t in checkpoint.weights.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))
        raise CheckpointError(f"checkpoint {path}: its tensors do not fit its config; first difference: {wrong[0]}")
    for name, tensor in checkpoint.weights.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {path}: {name} is not all finite float32")
    if not math.isfinite(checkpoint.val_loss):
        raise CheckpointError(f"checkpoint {path}: val_loss is {checkpoint.val_loss}, expected a number")


def promote(path: Path) -> None:
    """Make this file the one that its folder's readers serve."""
    with _locked(path.parent):
        before = [name for name in promotions(path.parent) if name != path.name]
        _record(path.parent, [path.name, *before])


def roll_back(folder: Path) -> Path:
    """Promote the predecessor: undo the last promotion. Again, and it goes one further back.

    Raised: CheckpointError when there is none.
    """
    with _locked(folder):
        left = [name for name in promotions(folder)[1:] if (folder / name).is_file()]
        if not left:
            raise CheckpointError(f"{folder}: no promotion came before this one, or its file is gone")
        _record(folder, left)
    return folder / left[0]


def promoted(folder: Path) -> Path | None:
    """The file to serve, or None where there is none. Raised: CheckpointError for a promoted.json that is broken."""
    names = promotions(folder)
    return folder / names[0] if names else None


def promotions(folder: Path) -> list[str]:
    """File names, the promoted one first, then those before it. Raised: CheckpointError as above."""
    path = folder / PROMOTED
    try:
        record = json.loads(path.read_bytes())
        names = [record["checkpoint"], *record["before"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{path}: cannot be used ({e}), expected {{'checkpoint': name, 'before': [names]}}"
        ) from e
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CheckpointError(f"{path}: names {name!r}, expected a file name like val1.4302-step004200.safetensors")
    return names


def _record(folder: Path, names: list[str]) -> None:
    with atomic(folder / PROMOTED) as f:
        f.write(json.dumps({"checkpoint": names[0], "before": names[1:_REMEMBERED]}, indent=1).encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer of promoted.json at a time, in any process; the lock goes with its holder, however that ends."""
    try:
        directory = os.open(folder, os.O_RDONLY)
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be opened ({e.strerror}), expected a folder of checkpoints") from e
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name whole and synced, or not at all. Raised: CheckpointError naming the path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be written ({e.strerror}); what was there before is whole") from e
    finally:
        temporary.unlink(missing_ok=True)
