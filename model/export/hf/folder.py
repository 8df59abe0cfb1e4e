"""Write a checkpoint as a folder in the layout of the Hugging Face hub, and read it back.

    config.json         the network, and all that the checkpoint knows besides its tensors
    model.safetensors   the weights, with the names of torch's modules
    vocab.json          the id of each character
    items.safetensors   of a model of a list: hashes of its training items, losses of its validation items
    load_model.py       loads it with torch and safetensors alone
    README.md           the model card, with its pictures

Reading gives the checkpoint again, with the same fingerprint. Nothing that is read can run.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from model.atomic_files import atomic_write
from model.checkpoints import file_format
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError, ModelError

CONFIG, WEIGHTS, VOCAB, ITEMS = "config.json", "model.safetensors", "vocab.json", "items.safetensors"
LOADER = Path(__file__).with_name("load_model.py")


def write_folder(checkpoint: Checkpoint, folder: Path, extra_files: dict[str, bytes]) -> None:
    """Write the folder; config.json comes last, so an incomplete folder is none.

    Args:
        checkpoint: The model.
        folder: It is created when it is missing; files of the same names are replaced.
        extra_files: The model card and its pictures, by name.

    Raises:
        StorageError: A file cannot be written.
    """
    tensors = checkpoint.tensors()
    weights = {name: tensor for name, tensor in tensors.items() if name in checkpoint.weights}
    others = {name: tensor for name, tensor in tensors.items() if name not in weights}
    vocab = {character: id for id, character in enumerate(checkpoint.vocab.characters)}
    files = {
        WEIGHTS: save(weights, {"format": "pt"}),
        VOCAB: _json(vocab),
        LOADER.name: LOADER.read_bytes(),
        **({ITEMS: save(others, {"format": "pt"})} if others else {}),
        **extra_files,
        CONFIG: _json(_config(checkpoint)),
    }
    for name, data in files.items():
        with atomic_write(folder / name) as file:
            file.write(data)


def read_folder(folder: Path) -> Checkpoint:
    """Read a folder that `write_folder` wrote.

    Raises:
        CheckpointError: A file is missing or damaged, or the model is not the one that was written.
    """
    name = f"folder {folder}"
    config, ids = _read_json(folder / CONFIG), _read_json(folder / VOCAB)
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        if config["model_type"] != "longhand":
            raise CheckpointError(field=f"{name}: model_type", value=config["model_type"], expected="'longhand'")
        if config["checkpoint"]["format"] != file_format.FORMAT:
            value, expected = config["checkpoint"]["format"], repr(file_format.FORMAT)
            raise CheckpointError(field=f"{name}: checkpoint.format", value=value, expected=expected)
        if config["checkpoint"].get("items_file"):
            tensors |= _read_tensors(folder / ITEMS)
        names = ("vocab_size", "n_hidden", "n_layers", "n_embed", "cell")
        metadata = {
            "run": json.dumps(config["checkpoint"]["run"]),
            "config": json.dumps({field: config[field] for field in names}),
            "vocab": json.dumps("".join(sorted(ids, key=ids.__getitem__))),
        }
        checkpoint = file_format.from_parts(metadata, tensors)
        if ids != {character: id for id, character in enumerate(checkpoint.vocab.characters)}:
            expected = "an object with the id of each character, from 0 in the order of their code points"
            raise CheckpointError("cannot be used", field=f"{folder / VOCAB}", expected=expected)
    except CheckpointError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, ModelError) as error:
        problem = f"its {CONFIG} or {VOCAB} cannot be used ({type(error).__name__}: {error})"
        raise CheckpointError(problem, field=name) from error
    file_format.check(checkpoint, str(config["checkpoint"]["fingerprint"]), name)
    return checkpoint


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    metadata = checkpoint.metadata()
    return {
        "architectures": ["CharacterModel"],
        "model_type": "longhand",
        "torch_dtype": "float32",
        **asdict(checkpoint.config),
        "start_id": checkpoint.vocab.start,
        "item_end_id": None if checkpoint.items is None else checkpoint.vocab.start,
        "normalization": checkpoint.vocab.normalization,
        "checkpoint": {
            "format": metadata["format"],
            "fingerprint": metadata["fingerprint"],
            "items_file": checkpoint.items is not None,
            "run": json.loads(metadata["run"]),
        },
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot be read ({reason})", field=str(path), expected="a JSON object") from error
    if not isinstance(value, dict):
        raise CheckpointError(field=str(path), value=value, expected="a JSON object")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"not a complete safetensors file ({reason})", field=str(path)) from error
    return {name: t.to(torch.float32) if t.is_floating_point() else t for name, t in tensors.items()}
