"""A warm start keeps the weights that both networks have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError
from model.network.char_rnn import CharRNN
from model.text.corpus import Corpus
from model.training.loop import fit
from tests.model.texts import words

CONFIG = TrainConfig(steps=60, batch_size=16, seq_length=16, lr=1e-2, validations=2, workers=1)


def test_shared_characters_keep_their_rows(tmp_path: Path) -> None:
    """Characters of both texts keep their rows, the network keeps its matrices, new characters start at random."""
    old = Corpus.from_text(words(4000), CONFIG)
    model = ModelConfig(len(old.vocab), n_hidden=16, n_embed=8)
    source = load(fit(old, model, CONFIG, tmp_path / "old"))
    new = Corpus.from_text(words(4000).replace("tea", "TEA").replace("coffee", "cocoa"), CONFIG)
    wider = replace(model, vocab_size=len(new.vocab))
    barely = replace(CONFIG, steps=1, lr=1e-9)
    warm = load(fit(new, wider, barely, tmp_path / "new", warm_start=source))
    for character in sorted(set(old.vocab.characters) & set(new.vocab.characters)):
        there, here = old.vocab.characters.index(character), new.vocab.characters.index(character)
        for name in ("embedding.weight", "head.weight", "head.bias"):
            assert torch.allclose(warm.weights[name][here], source.weights[name][there], atol=1e-6)
    assert torch.allclose(warm.weights["rnn.weight_hh_l0"], source.weights["rnn.weight_hh_l0"], atol=1e-6)
    assert not torch.allclose(source.weights["rnn.weight_hh_l0"], CharRNN(model).rnn.weight_hh_l0, atol=1e-2)
    with pytest.raises(ConfigError, match=r"warm start .*n_hidden is 16 in the checkpoint, 24 in this run"):
        fit(new, replace(wider, n_hidden=24), barely, tmp_path / "no", warm_start=source)
