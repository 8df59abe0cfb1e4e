"""The dynamic protocol: the model goes on learning from the text that it reads."""

from __future__ import annotations

import pytest
import torch

from model.checkpoints.file_format import load
from model.config import ModelConfig, TrainConfig
from model.evaluation import protocols
from model.evaluation.dynamic_evaluation import dynamic_loss
from model.network.char_rnn import CharRNN
from model.text.corpus import Corpus
from model.training.loop import fit
from tests.model.texts import words

CONFIG = TrainConfig(steps=150, batch_size=8, seq_length=32, lr=1e-2, validations=2)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> CharRNN:
    corpus = Corpus.from_text(words(3000), CONFIG)
    model = ModelConfig(len(corpus.vocab), n_hidden=32, n_embed=16)
    return load(fit(corpus, model, CONFIG, tmp_path_factory.mktemp("dynamic"))).network()


def test_it_adapts_to_what_is_new(network: CharRNN) -> None:
    """On a text that repeats what is new to the model, it is below the stateful loss; the network is not changed."""
    corpus = Corpus.from_text(words(3000), CONFIG)
    strange = corpus.vocab.encode("milk\nmilk\nsugar " * 80)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert dynamic_loss(network, strange) < protocols.loss(network, strange) - 0.05
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_without_a_learning_rate_it_is_the_stateful_protocol(network: CharRNN) -> None:
    """Nothing learnt: the plain pass, every character counted once, whatever the window."""
    ids = Corpus.from_text(words(3000), CONFIG).val[:1000]
    plain = protocols.loss(network, ids)
    assert dynamic_loss(network, ids, learning_rate=0.0, window=32) == pytest.approx(plain, abs=1e-4)
    assert dynamic_loss(network, ids, learning_rate=0.0, window=7) == pytest.approx(plain, abs=1e-4)


def test_no_character_helps_to_predict_itself(network: CharRNN) -> None:
    """The first window is predicted by the trained weights: its loss does not depend on the learning rate."""
    ids = Corpus.from_text(words(3000), CONFIG).val[:33]
    assert dynamic_loss(network, ids, learning_rate=0.5) == dynamic_loss(network, ids, learning_rate=0.0)
