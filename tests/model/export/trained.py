"""Small models that have learned something: greedy text of random weights ends in one repeated character."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from model.checkpoints.file_format import Checkpoint, load
from model.config import Cell, ModelConfig, TrainConfig
from model.text.corpus import Corpus
from model.training.loop import fit
from tests.model.texts import words

_CONFIG = TrainConfig(steps=120, batch_size=8, seq_length=32, lr=2e-2, validations=1, ema=0.9, seed=3)


@lru_cache
def trained(cell: Cell = "lstm", n_layers: int = 1, n_hidden: int = 24) -> Checkpoint:
    """Return a model of a text of four words."""
    corpus = Corpus.from_text(words(4000), _CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden, n_layers, n_embed=8, cell=cell)
    with tempfile.TemporaryDirectory() as folder:
        return load(fit(corpus, model, _CONFIG, Path(folder)))
