"""The LSTM computed gate by gate equals nn.LSTM."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.errors import ConfigError
from model.network.char_rnn import CharRNN
from model.network.gates import gate_activations


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_the_gates_are_nn_lstm(n_layers: int) -> None:
    """In float64, with the same weights, h of every character and the last c of every layer agree to 1e-12."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(40, n_hidden=33, n_layers=n_layers, n_embed=12)).double()
    for name, parameter in network.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.randint(40, (70,))
    with torch.inference_mode():
        out, (h, c) = network.rnn(network.embedding(ids)[None], network.zero_state(1))
    activations = gate_activations(network, ids.numpy())
    assert np.abs(activations[-1].h - out[0].numpy()).max() < 1e-12
    for layer in range(n_layers):
        assert np.abs(activations[layer].h[-1] - h[layer, 0].numpy()).max() < 1e-12
        assert np.abs(activations[layer].c[-1] - c[layer, 0].numpy()).max() < 1e-12


def test_an_item_begins_from_the_zero_state() -> None:
    """Of a network of a list: the activations of an item are those of the item alone, in every layer."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(9, n_hidden=16, n_layers=2, n_embed=8))
    network.item_end = 3
    items = [[3, 1, 2], [3, 5, 6, 7, 1], [3]]
    whole = gate_activations(network, [id for item in items for id in item])
    first = 0
    for item in items:
        for inside, alone in zip(whole, gate_activations(network, item), strict=True):
            for name in "ifgoch":
                assert np.array_equal(getattr(inside, name)[first : first + len(item)], getattr(alone, name))
        first += len(item)


def test_every_activation_is_in_its_range() -> None:
    """Arrays (T, H) for a text: i, f and o in (0, 1), g and h in (-1, 1), and c, h follow from them."""
    torch.manual_seed(0)
    network = CharRNN(ModelConfig(40, n_hidden=16, n_embed=8))
    (layer,) = gate_activations(network, [1, 2, 3, 4, 5])
    for values in (layer.i, layer.f, layer.g, layer.o, layer.c, layer.h):
        assert values.shape == (5, 16)
    for values in (layer.i, layer.f, layer.o):
        assert ((values > 0) & (values < 1)).all()
    before = np.concatenate([np.zeros((1, 16)), layer.c[:-1]])
    assert np.allclose(layer.c, layer.f * before + layer.i * layer.g, atol=1e-15)
    assert np.allclose(layer.h, layer.o * np.tanh(layer.c), atol=1e-15)


def test_an_empty_text_has_no_activations() -> None:
    """No characters: arrays of no rows."""
    (layer,) = gate_activations(CharRNN(ModelConfig(40, n_hidden=16, n_embed=8)), [])
    assert layer.h.shape == (0, 16)


def test_other_cells_are_refused() -> None:
    """A gru has other gates; the error says so."""
    with pytest.raises(ConfigError, match="the network's cell is 'gru', expected 'lstm'"):
        gate_activations(CharRNN(ModelConfig(40, n_hidden=8, cell="gru")), [1])
