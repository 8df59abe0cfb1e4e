"""Warm start: begin with the weights of another model. Shared characters keep their rows, new ones start at random."""

from __future__ import annotations

from dataclasses import asdict

import torch

from model.checkpoints.file_format import Checkpoint
from model.errors import ConfigError
from model.text.vocab import Vocabulary
from model.training.learner import Learner

_ROW_PER_CHARACTER = ("embedding.weight", "head.weight", "head.bias")


def load_matching_weights(source: Checkpoint, learner: Learner, vocab: Vocabulary) -> None:
    """Copy the weights of a checkpoint into a learner before its first step.

    Args:
        source: The checkpoint; its vocabulary may differ from `vocab`.
        learner: The learner, with a row for each character of `vocab`.
        vocab: The vocabulary of the training text.

    Raises:
        ConfigError: The two networks differ in more than the size of the vocabulary.
    """
    theirs, ours = asdict(source.config), asdict(learner.network.config)
    differences = [
        f"{name} is {value!r} in the checkpoint, {ours[name]!r} in this run"
        for name, value in theirs.items()
        if name != "vocab_size" and value != ours[name]
    ]
    if differences:
        raise ConfigError(f"the network has another shape: {'; '.join(differences)}", field="warm start")
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
