"""The evaluation protocols measure what they are called."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.config import EvaluationProtocol, ModelConfig, TrainConfig, protocol_name
from model.errors import ConfigError
from model.evaluation.dynamic_evaluation import dynamic_loss
from model.evaluation.protocols import loss, parse_protocols, sampled_loss, stepper_loss
from model.network.char_rnn import CharRNN
from model.stepper.reference import ReferenceStepper
from model.text.corpus import Corpus
from tests.model.texts import words


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_text(words(8000), TrainConfig(batch_size=8, seq_length=32))


def model_config(corpus: Corpus, n_layers: int = 1) -> ModelConfig:
    return ModelConfig(len(corpus.vocab), n_hidden=32, n_layers=n_layers, n_embed=16)


def test_the_stateful_protocol_is_one_pass(corpus: Corpus) -> None:
    """Read as spans side by side it is, within 0.0005 nats, the plain pass: one state, every character."""
    torch.manual_seed(0)
    network = CharRNN(model_config(corpus, n_layers=2)).eval()
    network.head.weight.data.mul_(5)
    ids = torch.from_numpy(corpus.train[:20000].astype(np.int64))
    with torch.inference_mode():
        logits, _ = network(ids[None, :-1], network.zero_state(1))
        plain = float(F.cross_entropy(logits[0], ids[1:]))
    assert loss(network, corpus.train[:20000]) == pytest.approx(plain, abs=5e-4)


@pytest.mark.parametrize("n_slots", [1, 5, 64])
def test_a_stepper_has_the_loss_of_its_network(corpus: Corpus, n_slots: int) -> None:
    """The stateful loss by a stepper, whatever its slots held before, is the network's."""
    torch.manual_seed(0)
    network = CharRNN(model_config(corpus)).eval()
    network.head.weight.data.mul_(5)
    stepper, ids = ReferenceStepper(network, n_slots), corpus.train[: min(9000, 3000 * n_slots)]
    stepper.write(0, np.ones((2, 1, network.config.n_hidden), np.float32))
    served = stepper_loss(stepper, ids)
    assert served == pytest.approx(loss(network, ids), abs=5e-4)


def test_the_windowed_protocol_starts_each_crop_from_the_zero_state(corpus: Corpus) -> None:
    """Crops of 256 from the zero state, each character once."""
    torch.manual_seed(0)
    network = CharRNN(model_config(corpus)).eval()
    ids = torch.from_numpy(corpus.train[: 256 * 5 + 1].astype(np.int64))
    with torch.inference_mode():
        losses = [
            float(F.cross_entropy(network(ids[None, i : i + 256], network.zero_state(1))[0][0], ids[i + 1 : i + 257]))
            for i in range(0, 256 * 5, 256)
        ]
    assert loss(network, corpus.train[: 256 * 5 + 1], "windowed") == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_dynamic_protocol_is_dynamic_evaluation(corpus: Corpus) -> None:
    """`loss` knows all three protocols."""
    network = CharRNN(model_config(corpus)).eval()
    assert loss(network, corpus.val[:200], "dynamic") == dynamic_loss(network, corpus.val[:200])


def test_a_sample_as_long_as_the_text_is_the_whole_text(corpus: Corpus) -> None:
    """With at least all characters it is the stateful loss; with fewer it is near."""
    network = CharRNN(model_config(corpus)).eval()
    whole = loss(network, corpus.val)
    assert sampled_loss(network, corpus.val, len(corpus.val)) == whole
    assert sampled_loss(network, corpus.val, 1024) == pytest.approx(whole, abs=0.1)


@pytest.mark.parametrize(
    ("text", "protocols"),
    [
        ("windowed,stateful", ("windowed", "stateful")),
        ("dynamic, windowed", ("windowed", "dynamic")),
        ("a,b", ("windowed", "stateful")),
        ("cab", ("windowed", "stateful", "dynamic")),
        ("b", ("stateful",)),
    ],
)
def test_protocols_have_names_and_letters(text: str, protocols: tuple[EvaluationProtocol, ...]) -> None:
    """A list of names or of letters is read, in the order of the protocols; other words are refused."""
    assert parse_protocols(text) == protocols


@pytest.mark.parametrize("text", ["", "d", "abd", "stateful,", "stateful windowed"])
def test_an_unknown_protocol_is_refused(text: str) -> None:
    """The error names the option, its value and the protocols."""
    with pytest.raises(ConfigError, match=r"protocols: got .*, expected windowed, stateful, dynamic separated by"):
        parse_protocols(text)


def test_old_letters_are_read() -> None:
    """Checkpoints of before name the stateful protocol b."""
    assert [protocol_name(letter) for letter in "abc"] == ["windowed", "stateful", "dynamic"]
    assert protocol_name("stateful") == "stateful"
