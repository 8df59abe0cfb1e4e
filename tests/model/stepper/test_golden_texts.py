"""Texts and states that every version must reproduce for a fixed checkpoint: a stored session depends on it.

golden_texts.json was written by the version before the sampling parameters became one structure; cpu-i8's part by the
version whose activations became 8 bits wide. When the arithmetic is changed on purpose, `numerics` changes too, and the
file is written anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams
from model.stepper import Stepper
from model.stepper.cpu import CpuStepper
from model.stepper.generate import write
from model.stepper.reference import ReferenceStepper
from model.text.vocab import Vocabulary

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("golden_texts.json").read_text())
VOCAB = Vocabulary.of("\n abcdefghijklmnopqrstuvwxyz.,'-")
STEPPERS: dict[str, Callable[[CharRNN], Stepper]] = {
    "cpu-f32": lambda network: CpuStepper(network, 1, "fp32"),
    "cpu-i8": lambda network: CpuStepper(network, 1, "int8"),
    "reference": lambda network: ReferenceStepper(network.double(), 1, torch.float64),
}


def fixed_network() -> CharRNN:
    """Weights from a generator whose numbers are the same in every version of numpy."""
    rng = np.random.default_rng(42)
    network = CharRNN(ModelConfig(len(VOCAB), n_hidden=48, n_layers=2, n_embed=16))
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            scale = 0.7 if name.startswith("head") else 0.4
            tensor.copy_(torch.from_numpy((rng.standard_normal(tuple(tensor.shape)) * scale).astype(np.float32)))
    return network


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize("name", STEPPERS)
def test_texts_and_states_are_those_of_earlier_versions(name: str) -> None:
    """Every character is the recorded one; of the native steppers, whose bits are portable, every state too."""
    stepper = STEPPERS[name](fixed_network())
    for case in GOLDEN[name]:
        params = SamplingParams(*case["params"])
        text = "".join(write(stepper, VOCAB, case["prompt"], len(case["text"]), params, case["seed"]))
        assert text == case["text"]
        if "state" in case:
            assert hashlib.sha256(stepper.read(0).tobytes()).hexdigest()[:16] == case["state"]
