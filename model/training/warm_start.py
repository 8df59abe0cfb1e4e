"""Beginning with the weights of another model: characters that both know keep their rows, new ones start fresh."""

from __future__ import annotations

from dataclasses import asdict

import torch

from model.checkpoints.file_format import Checkpoint
from model.errors import ConfigError
from model.text.vocab import Vocabulary
from model.training.learner import Learner

_ROWS_ARE_CHARACTERS = ("embedding.weight", "head.weight", "head.bias")


def take_over(source: Checkpoint, learner: Learner, vocab: Vocabulary) -> None:
    """Give a learner that has not begun the weights of `source`. Raised: ConfigError when the shapes differ."""
    have, want = asdict(source.config), asdict(learner.network.config)
    differences = [
        f"{k} is {have[k]!r} there, {want[k]!r} here" for k in have if k != "vocab_size" and have[k] != want[k]
    ]
    if differences:
        raise ConfigError(f"warm start: the checkpoint has another shape: {'; '.join(differences)}")
    shared = [c for c in vocab.characters if c in set(source.vocab.characters)]
    here = torch.from_numpy(vocab.encode("".join(shared)).astype("int64"))
    there = torch.from_numpy(source.vocab.encode("".join(shared)).astype("int64"))
    weights = learner.network.state_dict()
    with torch.no_grad():
        for name, tensor in weights.items():
            given = source.weights[name].to(tensor.device)
            if name in _ROWS_ARE_CHARACTERS:
                tensor[here.to(tensor.device)] = given[there.to(tensor.device)]
            else:
                tensor.copy_(given)
    learner.average.load_state_dict(weights)
