"""Losses by the native stepper are those of torch's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.evaluation import item_losses as items_module
from model.evaluation import protocols
from model.evaluation.item_losses import item_losses
from model.evaluation.native_reader import native_reader
from model.evaluation.protocols import loss, sampled_loss
from model.network.char_rnn import CharRNN

END = 3
Measure = Callable[[CharRNN], list[float]]


def network(cell: str = "lstm", item_end: int | None = None) -> CharRNN:
    torch.manual_seed(4)
    made = CharRNN(ModelConfig(12, n_hidden=20, n_layers=2, n_embed=8, cell=cell)).eval()  # type: ignore[arg-type]
    made.item_end = item_end
    return made


def of_a_text(net: CharRNN) -> list[float]:
    """Of some lengths, whole and in part; the text has an item's end in it, which means nothing in a text."""
    ids = np.random.default_rng(1).integers(0, 12, 9000).astype(np.uint8)
    lengths = (2, 700, len(ids))
    return [loss(net, ids[:n]) for n in lengths] + [sampled_loss(net, ids, n) for n in (40, 2000)]


def of_items(net: CharRNN) -> list[float]:
    """Of a list with equal items, items that begin alike, and an empty one; all of them, and the first."""
    rng = np.random.default_rng(2)
    letters = np.array([i for i in range(12) if i != END])
    items = [letters[rng.integers(0, 3, n)] for n in rng.integers(1, 9, 200)] + [letters[:0]]
    ids = np.concatenate([np.append(END, item) for item in items]).astype(np.uint8)
    all_of_them, some = item_losses(net, ids, END), item_losses(net, ids, END, max_characters=50)
    return [*all_of_them.nats, *all_of_them.peaks, *all_of_them.characters, *some.nats, len(some.nats)]


@pytest.mark.usefixtures("native_code")
@pytest.mark.parametrize(("measure", "item_end"), [(of_a_text, None), (of_items, END)])
def test_the_losses_are_those_of_torch(measure: Measure, item_end: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding, for texts and lists."""
    net = network(item_end=item_end)
    with native_reader(net, 1) as stepper:
        assert stepper is not None
    native = measure(net)

    @contextmanager
    def none(_network: CharRNN, n_slots: int) -> Iterator[None]:
        yield None

    for module in (protocols, items_module):
        monkeypatch.setattr(module, "native_reader", none)
    assert native == pytest.approx(measure(net), abs=2e-5)


def test_what_the_stepper_cannot_read_is_torchs() -> None:
    """Another cell; a weight that is no number, whose loss is none either."""
    with native_reader(network("gru"), 1) as stepper:
        assert stepper is None
    assert math.isfinite(of_a_text(network("gru"))[0])
    broken = network()
    broken.head.bias.data[0] = torch.nan
    with native_reader(broken, 1) as stepper:
        assert stepper is None
    assert math.isnan(of_a_text(broken)[0])
