"""The checkpoint file: weights, config, vocabulary, losses, hash of the training text and options of the run.

The file is safetensors with JSON in its metadata, so loading one runs no code. A checkpoint needs no other file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.atomic_files import atomic_write
from model.config import (
    MAX_INT8_COST,
    EvaluationProtocol,
    ModelConfig,
    PrecisionChoice,
    WeightPrecision,
    protocol_name,
)
from model.errors import CheckpointError, ModelError, short_repr
from model.network.char_rnn import CharRNN
from model.text.items.record import ItemRecord
from model.text.normalization import normalization_of
from model.text.vocab import Vocabulary

FORMAT = "longhand-1"
"""The name and version of the layout, in the metadata of every checkpoint."""

_RUN_TEXTS = ("corpus_sha256", "created", "self_test", "corpus", "preset", "end")
_OPTIONAL_NUMBERS = ("int8_cost",)
_RUN_NUMBERS = ("val_loss", "val_characters", "train_loss", "step", *_OPTIONAL_NUMBERS)

_ITEMS = "items."
"""The beginning of the names of tensors that are no weights: those of an ItemRecord."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and its origin."""

    config: ModelConfig
    vocab: Vocabulary
    weights: Mapping[str, Tensor]
    val_loss: float  # nats per character, by val_protocol
    val_characters: int  # the number of characters that val_loss was measured on
    step: int
    train_loss: float  # nats per character, running mean over the last windows
    corpus_sha256: str
    options: Mapping[str, Any]  # the TrainConfig of the run
    self_test: str = ""  # text that the trainer generated, see model.checkpoints.self_test; empty: no self-test
    created: str = ""  # UTC, ISO 8601
    int8_cost: float | None = None  # nats per character that int8 weights add; None: not measured
    items: ItemRecord | None = None  # of a model of a list; None: of a text
    corpus: str = ""  # the name of the training text, for people; empty: not known
    preset: str = ""  # the named settings that the run began with; empty: not known

    @property
    def file_name(self) -> str:
        """The validation loss and the step, for example `val1.4302-step004200.safetensors`."""
        return f"val{self.val_loss:.4f}-step{self.step:06d}.safetensors"

    def weight_precision(self, choice: PrecisionChoice = "auto") -> WeightPrecision:
        """Return the precision to serve with; auto is int8 if the trainer measured that it costs at most 0.001 nats."""
        if choice != "auto":
            return choice
        return "int8" if self.int8_cost is not None and self.int8_cost <= MAX_INT8_COST else "fp32"

    @property
    def val_protocol(self) -> EvaluationProtocol:
        """The protocol of val_loss."""
        return "stateful" if self.items is None else "items"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the weights, the config and the vocabulary."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        digest.update(self.vocab.characters.encode("utf-8", "surrogatepass"))
        if self.vocab.end != "\n":
            digest.update(b"end" + self.vocab.end.encode())
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def network(self, dtype: torch.dtype = torch.float32) -> CharRNN:
        """Build the network with these weights, in evaluation mode and without gradients."""
        with torch.device("meta"):  # no memory and no random initial values, which cost more than all the rest
            network = CharRNN(self.config)
        network.load_state_dict({name: w.to(dtype, copy=True) for name, w in self.weights.items()}, assign=True)
        network.item_end = None if self.items is None else self.vocab.start
        return network.eval().requires_grad_(False)

    def metadata(self) -> dict[str, str]:
        """Return all but the tensors, as the file has it."""
        return {
            "format": FORMAT,
            "config": json.dumps(asdict(self.config)),
            "vocab": json.dumps(self.vocab.characters),
            "fingerprint": self.fingerprint,
            "run": json.dumps(
                {
                    "val_loss": self.val_loss,
                    "val_protocol": self.val_protocol,
                    "val_characters": self.val_characters,
                    "train_loss": self.train_loss,
                    "step": self.step,
                    "corpus_sha256": self.corpus_sha256,
                    "options": dict(self.options),
                    "normalization": self.vocab.normalization,
                    "self_test": self.self_test,
                    "created": self.created,
                    "int8_cost": self.int8_cost,
                    "corpus": self.corpus,
                    "preset": self.preset,
                    **({"items": self.items.as_dict(), "end": self.vocab.end} if self.items is not None else {}),
                }
            ),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as the file has them: the weights, and of a model of a list the arrays of its record."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.weights.items()}
        if self.items is not None:
            tensors |= {_ITEMS + name: torch.from_numpy(array) for name, array in self.items.arrays().items()}
        return tensors

    def save(self, folder: Path) -> Path:
        """Write the checkpoint as `file_name` into a folder.

        Returns:
            The path of the file.

        Raises:
            StorageError: The file cannot be written.
        """
        stamped = replace(self, created=self.created or datetime.now(UTC).isoformat(timespec="seconds"))
        data = save(stamped.tensors(), metadata=stamped.metadata())
        path = folder / self.file_name
        with atomic_write(path) as file:
            file.write(data)
        return path


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """The metadata of a checkpoint file. The weights have not been read, so they may be damaged."""

    path: Path
    fingerprint: str
    config: ModelConfig
    run: dict[str, Any]
    size_bytes: int

    @property
    def val_protocol(self) -> EvaluationProtocol:
        """The protocol of the validation loss."""
        return protocol_name(self.run.get("val_protocol", "stateful"))

    def as_dict(self) -> dict[str, Any]:
        """Return the description of the model that GET /models and `info` show."""
        run = self.run
        return {
            "id": self.fingerprint,
            "name": self.path.name,
            "corpus": run.get("corpus", ""),
            "preset": run.get("preset", ""),
            "val_loss": run["val_loss"],
            "val_protocol": self.val_protocol,
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
            "int8_cost": run.get("int8_cost"),
            "bytes": self.size_bytes,
            "items": run.get("items"),
        }


@contextmanager
def open_safetensors(
    path: Path, expected_format: str, kind: str = "checkpoint"
) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a safetensors file of the given format.

    Args:
        path: The file.
        expected_format: What its metadata must hold as `format`.
        kind: What the file is, for the messages of errors.

    Yields:
        The open file of the safetensors library, and the file's metadata.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or its metadata cannot be used. Errors
            about the metadata inside the block count as the last of these.
    """
    name = f"{kind} {path}"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != expected_format:
                problem = f"format is {metadata.get('format')!r}"
                raise CheckpointError(problem, field=name, value=metadata.get("format"), expected=repr(expected_format))
            yield file, metadata
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError("no such file", field=name) from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"not a complete safetensors file ({error})", field=name) from error
    except (KeyError, ValueError, TypeError, RecursionError, ModelError) as error:
        problem = f"its metadata cannot be used ({type(error).__name__}: {error})"
        raise CheckpointError(problem, field=name) from error


def read_info(path: Path) -> CheckpointInfo:
    """Read the metadata of a checkpoint, without its weights.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or its metadata cannot be used.
    """
    with open_safetensors(path, FORMAT) as (_, metadata):
        return _info(path, metadata)


def _info(path: Path, metadata: Mapping[str, str]) -> CheckpointInfo:
    config, run = ModelConfig(**_read_json(metadata["config"])), _read_run(metadata["run"])
    info = CheckpointInfo(path, metadata["fingerprint"], config, run, path.stat().st_size)
    info.as_dict()  # fails when a field is missing
    return info


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, and check that it is complete and unmodified.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or does not match its own fingerprint.
    """
    with open_safetensors(path, FORMAT) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
        checkpoint = from_parts(metadata, tensors)
    check(checkpoint, metadata.get("fingerprint"), f"checkpoint {path}")
    return checkpoint


def load_without_weights(path: Path) -> tuple[Checkpoint, CheckpointInfo]:
    """Read all of a checkpoint but its weights, and its metadata with the fingerprint. Nothing is verified.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or its metadata cannot be used.
    """
    with open_safetensors(path, FORMAT) as (file, metadata):
        names = [name for name in file.keys() if name.startswith(_ITEMS)]  # noqa: SIM118 - not a mapping
        return from_parts(metadata, {name: file.get_tensor(name) for name in names}), _info(path, metadata)


def from_parts(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """Return the checkpoint of `metadata()` and `tensors()`; `check` says whether it can be used.

    Raises:
        KeyError, ValueError, TypeError, RecursionError, ModelError: The metadata cannot be used.
    """
    run, characters = _read_run(metadata["run"]), _read_json(metadata["vocab"])
    if not isinstance(characters, str):
        raise ValueError(f"vocab is {short_repr(characters)}, expected a text")
    return Checkpoint(
        config=ModelConfig(**_read_json(metadata["config"])),
        vocab=Vocabulary(characters, normalization_of(characters, run.get("normalization")), run.get("end", "\n")),
        weights={name: tensor for name, tensor in tensors.items() if not name.startswith(_ITEMS)},
        val_loss=float(run["val_loss"]),
        val_characters=int(run["val_characters"]),
        step=int(run["step"]),
        train_loss=float(run["train_loss"]),
        corpus_sha256=run["corpus_sha256"],
        options=run["options"],
        self_test=run.get("self_test", ""),
        created=run["created"],
        int8_cost=None if run.get("int8_cost") is None else float(run["int8_cost"]),
        items=_item_record(run.get("items"), tensors),
        corpus=str(run.get("corpus", "")),
        preset=str(run.get("preset", "")),
    )


def check(checkpoint: Checkpoint, fingerprint: str | None, name: str) -> None:
    """Check that a checkpoint is complete and unmodified.

    Args:
        checkpoint: What was read.
        fingerprint: What its metadata say.
        name: What the checkpoint is called in errors.

    Raises:
        CheckpointError: Its tensors do not fit its configuration, a loss is not finite, or it does not match the
            fingerprint.
    """
    _check_weights(checkpoint, name)
    for field in ("val_loss", "train_loss", "int8_cost"):
        loss = getattr(checkpoint, field)
        if loss is not None and not math.isfinite(loss):
            raise CheckpointError(f"{field} is {loss}", field=name, expected="a finite number")
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"fingerprint is {checkpoint.fingerprint}; the file was modified after it was written",
            field=name,
            value=checkpoint.fingerprint,
            expected=f"{fingerprint!r} from its metadata",
        )


def _read_json(text: str) -> Any:
    """Return a value of the metadata. Python reads `NaN` and `1e400` too, which no JSON answer can repeat.

    Raises:
        ValueError: It is no JSON, or has a number that is not finite.
    """
    return json.loads(text, parse_float=_finite, parse_constant=_finite)


def _read_run(text: str) -> dict[str, Any]:
    """Return what the metadata say of the run, of the types that everything which shows or compares it relies on.

    Raises:
        ValueError: It is no JSON object, or a value is of another type.
    """
    run = _read_json(text)
    if not isinstance(run, dict):
        raise ValueError(f"run is {short_repr(run)}, expected an object")
    json.dumps(run, ensure_ascii=False).encode()  # an error for half of a pair of surrogates, which no answer can have
    for name in _RUN_TEXTS:
        if not isinstance(run.get(name, ""), str):
            raise ValueError(f"{name} is {short_repr(run[name])}, expected a text")
    for name in _RUN_NUMBERS:
        value = 0 if run.get(name) is None and name in _OPTIONAL_NUMBERS else run[name]
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{name} is {short_repr(value)}, expected a number")
    if not isinstance(run["options"], dict):
        raise ValueError(f"options is {short_repr(run['options'])}, expected an object")
    return run


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def _item_record(values: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> ItemRecord | None:
    if values is None:
        return None
    arrays = {n.removeprefix(_ITEMS): t.numpy() for n, t in tensors.items() if n.startswith(_ITEMS)}
    return ItemRecord.from_dict(values, arrays)


def _check_weights(checkpoint: Checkpoint, name: str) -> None:
    """Check that the tensors have the names, shapes and type that the config demands, and are finite.

    Raises:
        CheckpointError: They are not.
    """
    config = checkpoint.config
    if len(checkpoint.vocab) != config.vocab_size:
        raise CheckpointError(
            f"its vocabulary has {len(checkpoint.vocab)} characters",
            field=name,
            value=len(checkpoint.vocab),
            expected=f"{config.vocab_size} as in its config",
        )
    with torch.device("meta"):
        expected = {name: tuple(t.shape) for name, t in CharRNN(config).state_dict().items()}
    shapes = {name: tuple(t.shape) for name, t in checkpoint.weights.items()}
    if shapes != expected:
        wrong = sorted(set(shapes.items()) ^ set(expected.items()))
        raise CheckpointError(f"its tensors do not match its config; first difference: {wrong[0]}", field=name)
    for tensor_name, tensor in checkpoint.weights.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{tensor_name} is not all finite float32", field=name)
