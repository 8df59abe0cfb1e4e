"""A plain PyTorch model becomes a checkpoint with the same logits, or one error says what is missing."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.errors import CheckpointError
from model.export.state_dict import read_state_dict, read_vocabulary, refuse_pickle

CHARACTERS = "zyx\nwvuabc"
IDS = {character: id for id, character in enumerate(CHARACTERS)}
HIDDEN = 12


class Plain(nn.Module):
    """As in many a tutorial; with n_embed = 0 it reads one-hot vectors."""

    def __init__(self, kind: str = "LSTM", n_layers: int = 1, n_embed: int = 5, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(n_layers)
        self.emb = nn.Embedding(len(CHARACTERS), n_embed) if n_embed else None
        self.core_l = getattr(nn, kind)(n_embed or len(CHARACTERS), HIDDEN, n_layers, bias=bias, batch_first=True)
        self.to_logits = nn.Linear(HIDDEN, len(CHARACTERS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids) if self.emb is not None else nn.functional.one_hot(ids, len(CHARACTERS)).float()
        logits: Tensor = self.to_logits(self.core_l(x)[0])
        return logits


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("options", [{}, {"n_layers": 3}, {"n_embed": 0}, {"n_embed": HIDDEN}, {"bias": False}])
def test_it_computes_the_same(kind: str, options: dict[str, int], tmp_path: Path) -> None:
    """Whatever its names, its cell, its layers, and the order of its characters."""
    plain = Plain(kind, **options)  # type: ignore[arg-type]
    save_file(plain.state_dict(), tmp_path / "m.safetensors")
    checkpoint = read_state_dict(tmp_path / "m.safetensors", IDS)
    text = "".join(np.random.default_rng(1).choice(list(CHARACTERS), 200))
    network = checkpoint.network()
    with torch.inference_mode():
        theirs = plain(torch.tensor([[IDS[c] for c in text]]))[0]
        ours = network(torch.from_numpy(checkpoint.vocab.encode(text))[None].long(), network.zero_state(1))[0][0]
    order = [IDS[c] for c in checkpoint.vocab.characters]
    assert float((theirs[:, order] - ours).abs().max()) < 1e-5


def test_half_precision_is_read(tmp_path: Path) -> None:
    """Weights of 16 bits become float32."""
    save_file({name: t.half() for name, t in Plain().state_dict().items()}, tmp_path / "m.safetensors")
    checkpoint = read_state_dict(tmp_path / "m.safetensors", IDS)
    assert {tensor.dtype for tensor in checkpoint.weights.values()} == {torch.float32}


def weights(**changes: Tensor | None) -> dict[str, Tensor]:
    """A state dict with changes; the double underscore stands for a point."""
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: t for name, t in {**Plain().state_dict(), **named}.items() if t is not None}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": torch.zeros(3)}, "has 0 recurrent networks, expected the weights of one nn.LSTM"),
        (weights(other__weight_ih_l0=torch.zeros(3, 3)), "has 2 recurrent networks"),
        (weights(core_l__weight_hh_l0=None), "has no matrix core_l.weight_hh_l0"),
        (weights(core_l__weight_ih_l0_reverse=torch.zeros(3)), "expected a network that reads forward"),
        (weights(to_logits__bias=None), "expected one output layer with a weight (10, 12) and a bias (10,)"),
        (weights(emb__weight=None), "has 0 tensors that may be the embedding"),
        (weights(more__weight=torch.zeros(10, 5)), "has 2 tensors that may be the embedding"),
        (weights(core_l__weight_hh_l0=torch.zeros(24, 12)), "weight_hh_l0 is (24, 12)"),
    ],
)
def test_another_model_is_refused(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    """The error says what was found, and what is needed."""
    save_file(state, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_state_dict(tmp_path / "m.safetensors", IDS)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_pickle_is_refused_with_the_command_that_converts_it(legacy: bool, nested: bool, tmp_path: Path) -> None:
    """The command is run as it is printed, and what it writes is read."""
    path, state = tmp_path / "my model.pt", Plain().state_dict()
    torch.save({"state_dict": state} if nested else state, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="is a pickle, and loading one can run any code") as error:
        refuse_pickle(path)
    (command,) = re.findall(r"python (-c .*?), expected a safetensors file", str(error.value))
    done = subprocess.run([sys.executable, *shlex.split(command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_state_dict(path.with_suffix(".safetensors"), IDS).config.n_hidden == HIDDEN


@pytest.mark.parametrize("value", [list(CHARACTERS), IDS])
def test_vocabularies_are_lists_or_objects(value: object, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps(value))
    assert read_vocabulary(tmp_path / "v.json") == IDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("3", "cannot be used"),
        ('["a"]', "cannot be used"),
        ('["a", "a"]', "cannot be used"),
        ('["a", 1]', "cannot be used"),
        ('{"a": 0, "b": 2}', "cannot be used"),
        ('{"a": true, "b": false}', "cannot be used"),
        ('["a", "<unk>"]', "'<unk>' is not one character"),
    ],
)
def test_other_vocabularies_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_vocabulary(tmp_path / "v.json")
