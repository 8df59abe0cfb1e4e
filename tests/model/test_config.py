"""Settings are checked when they are created; an error names the field, the value and what is accepted."""

from __future__ import annotations

import math

import pytest

from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError
from model.network.char_rnn import CharRNN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("lr", 0.0), ("lr", math.nan), ("lr", "fast"), ("dropout", 1.0), ("batch_size", 0), ("batch_size", 2.5)],
        *[("seed", True), ("val_fraction", 0.0), ("minutes", math.inf), ("clip", -1.0)],
    ],
)
def test_a_bad_setting_is_named(field: str, value: object) -> None:
    """Field, value and range."""
    with pytest.raises(ConfigError, match=rf"{field}: got {value!r}, expected a .*number"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_unknown_settings_are_named() -> None:
    """A setting that does not exist, and a cell that does not."""
    with pytest.raises(ConfigError, match=r"learning_rate: not a training setting, expected one of .*lr"):
        TrainConfig.from_dict({"learning_rate": 1})
    with pytest.raises(ConfigError, match="cell: got 'transformer', expected one of lstm, gru, rnn"):
        ModelConfig(10, cell="transformer")  # type: ignore[arg-type]


def test_the_parameters_are_counted() -> None:
    """n_parameters is the number of trained numbers."""
    for cell in ("lstm", "gru", "rnn"):
        for n_layers in (1, 3):
            config = ModelConfig(16, n_hidden=32, n_layers=n_layers, n_embed=16, cell=cell)
            assert config.n_parameters == sum(p.numel() for p in CharRNN(config).parameters())
