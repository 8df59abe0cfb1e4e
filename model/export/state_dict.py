"""A plain PyTorch model as a checkpoint: the state dict of an embedding, an nn.LSTM, nn.GRU or nn.RNN, a linear layer.

The names before `weight_ih_l0` do not matter. The embedding and the output layer are found by their shapes. A model
without an embedding reads one-hot vectors, which is an embedding with the identity as its weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from model.checkpoints import self_test
from model.checkpoints.file_format import Checkpoint
from model.config import Cell, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.evaluation.protocols import loss, sampled_loss
from model.evaluation.quantization import int8_cost
from model.text.corpus import Corpus
from model.text.normalization import normalization_of
from model.text.vocab import Vocabulary

_CELLS: dict[int, Cell] = {4: "lstm", 3: "gru", 1: "rnn"}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_TRAIN_SAMPLE = 100_000  # characters of the training part that its loss is measured on
_CONVERSION = (
    "import sys, torch; from safetensors.torch import save_file; s = torch.load(sys.argv[1], weights_only=True); "
    "s = s.get('state_dict', s); save_file({k: v.clone().contiguous() for k, v in s.items()}, sys.argv[2])"
)


def refuse_pickle(path: Path) -> None:
    """Check that a file is no pickle.

    Raises:
        CheckpointError: It is one; the error has the command that converts it.
    """
    with open(path, "rb") as file:
        begin = file.read(4)
    if begin.startswith(_PICKLES):
        out = path.with_suffix(".safetensors")
        raise CheckpointError(
            "is a pickle, and loading one can run any code that is in it; convert it where you trust it: "
            f'python -c "{_CONVERSION}" {str(path)!r} {str(out)!r}',
            field=str(path),
            expected="a safetensors file",
        )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read the id of each character: a JSON object, or a JSON list of the characters in the order of their ids.

    Raises:
        CheckpointError: The file is something else.
    """
    expected = "a JSON object with the id of each character, or a JSON list of single characters"
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot be read ({reason})", field=f"vocabulary {path}", expected=expected) from error
    if isinstance(value, list):
        ids = {character: id for id, character in enumerate(value) if isinstance(character, str)}
        is_valid = len(ids) == len(value)
    else:
        ids = value if isinstance(value, dict) else {}
        is_valid = all(type(id) is int for id in ids.values()) and sorted(ids.values()) == list(range(len(ids)))
    wrong = [character for character in ids if len(character) != 1]
    if not is_valid or wrong or len(ids) < 2:
        problem = f"{wrong[0]!r} is not one character" if wrong else "cannot be used"
        raise CheckpointError(problem, field=f"vocabulary {path}", expected=expected)
    return ids


def read_state_dict(path: Path, ids: Mapping[str, int]) -> Checkpoint:
    """Read a state dict, with the names and the order of characters that a checkpoint has. Its losses are not known.

    Args:
        path: A safetensors file.
        ids: The id of each character.

    Raises:
        CheckpointError: The file cannot be read, or is no model of this kind.
        ConfigError: The network is larger than one may be.
    """
    name = f"state dict {path}"
    try:
        refuse_pickle(path)
        tensors = {key: tensor.to(torch.float32) for key, tensor in load(path.read_bytes()).items()}
    except (OSError, SafetensorError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"not a complete safetensors file ({reason})", field=name) from error
    try:
        config, weights = _weights(tensors, len(ids))
    except CheckpointError as error:
        raise CheckpointError(error.problem, field=name, expected=error.expected) from error
    characters = "".join(sorted(ids))
    order = torch.tensor([ids[character] for character in characters])
    for key in ("embedding.weight", "head.weight", "head.bias"):
        weights[key] = weights[key][order].contiguous()
    vocab = Vocabulary(characters, normalization_of(characters, None))
    return Checkpoint(config, vocab, weights, 0.0, 0, 0, 0.0, "", {})


def measured(checkpoint: Checkpoint, corpus: Corpus, options: Mapping[str, float]) -> Checkpoint:
    """Return the checkpoint with its losses on a text, what int8 costs, and a self-test.

    Args:
        checkpoint: From `read_state_dict`.
        corpus: A text in the checkpoint's vocabulary.
        options: The settings that split it.
    """
    network = checkpoint.network()
    return self_test.record(
        replace(
            checkpoint,
            val_loss=loss(network, corpus.val),
            val_characters=len(corpus.val) - 1,
            train_loss=sampled_loss(network, corpus.train, _TRAIN_SAMPLE),
            corpus_sha256=corpus.sha256,
            options=dict(options),
            int8_cost=int8_cost(network, corpus.val),
        )
    )


def _weights(tensors: Mapping[str, Tensor], vocab_size: int) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the network's shape and its weights by our names; ids are still the file's."""
    layers = sorted(name for name in tensors if re.search(r"(^|\.)weight_ih_l\d+$", name))
    prefixes = {name[: name.index("weight_ih_l")] for name in layers}
    expected = "the weights of one nn.LSTM, nn.GRU or nn.RNN: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0"
    if len(prefixes) != 1:
        raise CheckpointError(f"has {len(prefixes)} recurrent networks", expected=expected)
    (prefix,) = prefixes
    odd = [name for name in tensors if re.search(r"_l\d+_reverse$|weight_hr_l\d+$", name)]
    if odd:
        raise CheckpointError(f"has {odd[0]}", expected="a network that reads forward, without projections")
    weights = {}
    for layer in range(len(layers)):
        for kind in ("weight_ih", "weight_hh"):
            key = f"{kind}_l{layer}"
            if prefix + key not in tensors or tensors[prefix + key].ndim != 2:
                raise CheckpointError(f"has no matrix {prefix}{key}", expected=expected)
            weights[f"rnn.{key}"] = tensors[prefix + key]
        for kind in ("bias_ih", "bias_hh"):
            key, rows = f"{kind}_l{layer}", len(weights[f"rnn.weight_hh_l{layer}"])
            weights[f"rnn.{key}"] = tensors.get(prefix + key, torch.zeros(rows))
    n_hidden, inputs = weights["rnn.weight_hh_l0"].shape[1], weights["rnn.weight_ih_l0"].shape[1]
    cell = _CELLS.get(len(weights["rnn.weight_hh_l0"]) // n_hidden)
    if cell is None:
        raise CheckpointError(f"weight_hh_l0 is {tuple(weights['rnn.weight_hh_l0'].shape)}", expected=expected)
    others = {name: t for name, t in tensors.items() if not re.search(r"(weight|bias)_(ih|hh)_l\d+$", name)}
    weights |= _ends(others, vocab_size, n_hidden, inputs)
    try:
        config = ModelConfig(vocab_size, n_hidden, len(layers), inputs, cell)
    except ConfigError as error:
        raise CheckpointError(f"the network cannot be used: {error}") from error
    return config, weights


def _ends(others: Mapping[str, Tensor], vocab_size: int, n_hidden: int, inputs: int) -> dict[str, Tensor]:
    """Return the embedding and the output layer, found by their shapes and, of two equal ones, by the bias."""
    biases = {name.removesuffix("bias") for name, t in others.items() if name.endswith("bias") and len(t) == vocab_size}
    heads = [n for n, t in others.items() if t.shape == (vocab_size, n_hidden) and n.removesuffix("weight") in biases]
    rest = [n for n, t in others.items() if t.shape == (vocab_size, inputs) and n not in heads]
    if len(heads) != 1:
        names = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in others.items()) or "nothing"
        expected = f"one output layer with a weight ({vocab_size}, {n_hidden}) and a bias ({vocab_size},)"
        raise CheckpointError(f"beside the recurrent network it has {names}", expected=expected)
    if len(rest) == 1:
        embedding = others[rest[0]]
    elif not rest and inputs == vocab_size:
        embedding = torch.eye(vocab_size)  # one-hot vectors
    else:
        expected = f"one embedding ({vocab_size}, {inputs})"
        raise CheckpointError(f"has {len(rest)} tensors that may be the embedding", expected=expected)
    (head,) = heads
    bias = others[f"{head.removesuffix('weight')}bias"]
    return {"embedding.weight": embedding, "head.weight": others[head], "head.bias": bias}
