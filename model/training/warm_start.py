"""Warm start: begin with the weights of another model. Shared characters keep their rows, new ones start at random."""

from __future__ import annotations

from dataclasses import asdict

import torch

from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig
from model.errors import ConfigError
from model.text.vocab import Vocabulary
from model.training.learner import Learner

_ROW_PER_CHARACTER = ("embedding.weight", "head.weight", "head.bias")


def check_shape(source: ModelConfig, model: ModelConfig) -> None:
    """Check that a network can begin with the weights of another one.

    Args:
        source: The shape of the checkpoint's network.
        model: The shape of the network that is to be trained.

    Raises:
        ConfigError: The two differ in more than the size of the vocabulary.
    """
    theirs, ours = asdict(source), asdict(model)
    differences = [name for name in theirs if name != "vocab_size" and theirs[name] != ours[name]]
    if differences:
        listed = "; ".join(
            f"{name} is {theirs[name]!r} in the checkpoint, {ours[name]!r} in this run" for name in differences
        )
        problem = f"a warm start needs a network of the same shape: {listed}"
        name = differences[0]
        raise ConfigError(problem, field=name, value=ours[name], expected=repr(theirs[name]))


def load_matching_weights(source: Checkpoint, learner: Learner, vocab: Vocabulary) -> None:
    """Copy the weights of a checkpoint into a learner before its first step.

    Args:
        source: The checkpoint; its vocabulary may differ from `vocab`.
        learner: The learner, with a row for each character of `vocab`.
        vocab: The vocabulary of the training text.

    Raises:
        ConfigError: The two networks differ in more than the size of the vocabulary.
    """
    check_shape(source.config, learner.network.config)
    shared = "".join(c for c in vocab.characters if c in set(source.vocab.characters))
    our_rows = torch.from_numpy(vocab.encode(shared).astype("int64"))
    their_rows = torch.from_numpy(source.vocab.encode(shared).astype("int64"))
    weights = learner.network.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            loaded = source.weights[name].to(tensor.device)
            if name in _ROW_PER_CHARACTER:
                tensor[our_rows.to(tensor.device)] = loaded[their_rows.to(tensor.device)]
            else:
                tensor.copy_(loaded)
    learner.average.load_state_dict(weights)
