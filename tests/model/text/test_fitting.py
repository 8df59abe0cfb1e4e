"""Settings that fit a text: whatever its size and alphabet, it can be trained on, and every change is reported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PRESETS, ModelConfig, TrainConfig
from model.errors import ConfigError, TextTooShort
from model.text.corpus import CorpusSizes, TextSizes, check_lengths
from model.text.fitting import FittedConfig, expected_epochs, fit_to_text
from model.text.items.layout import ItemLayout
from model.text.items.reading import items_of
from model.text.items.splitting import SplittableItems


def preset(name: str) -> TrainConfig:
    """The training settings of a preset."""
    names = TrainConfig().as_dict()
    return TrainConfig(**{k: v for k, v in PRESETS[name].items() if k in names})


def shape(name: str) -> ModelConfig:
    """The network of a preset."""
    names = {"n_hidden", "n_layers", "n_embed"}
    return ModelConfig(2, **{k: v for k, v in PRESETS[name].items() if k in names})


def fit_sizes(
    config: TrainConfig, sizes: CorpusSizes, n_distinct: int, explicit: Iterable[str] = (), n_processes: int = 1
) -> FittedConfig:
    """Settings that fit a text, when somebody has set the dropout: what does not depend on the budget."""
    fixed = [*explicit, "dropout", "weight_drop"]
    return fit_to_text(config, ModelConfig(2), sizes, n_distinct, explicit=fixed, n_processes=n_processes)


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    name=st.sampled_from(sorted(PRESETS)),
    n_processes=st.sampled_from([1, 2, 3]),
)
def test_every_text_fits(lengths: list[int], name: str, n_processes: int) -> None:
    """Any text of a few characters can be trained on, by processes that share its batch; each change has a note."""
    before = preset(name)
    if max(lengths) < 4 or sum(lengths) < 8 * n_processes:
        with contextlib.suppress(TextTooShort):
            fit_to_text(before, shape(name), TextSizes(lengths), 2, n_processes=n_processes)
        return
    fitted = fit_to_text(before, shape(name), TextSizes(lengths), 2, n_processes=n_processes)
    check_lengths(TextSizes(lengths), fitted.config)
    assert fitted.config.batch_size % n_processes == 0 or fitted.config.batch_size == before.batch_size
    changed = [k for k, v in fitted.config.as_dict().items() if v != getattr(before, k)]
    assert {note.split()[0] for note in fitted.notes} == set(changed)


def test_a_text_that_fits_changes_nothing() -> None:
    """The settings of a text of usual size are those that were given, without a note."""
    config = preset("best")
    assert fit_sizes(config, TextSizes([100_000, 20]), 90) == FittedConfig(config, ())


def test_a_text_of_300_characters() -> None:
    """The batch shrinks first: the window, which says how far a gradient reaches, stays as long as it can."""
    fitted = fit_sizes(preset("quick"), TextSizes([300]), 40)
    assert (fitted.config.batch_size, fitted.config.seq_length) == (8, 32)
    assert fitted.notes == ("batch_size is 8 instead of 16: the training part has 270 characters",)
    tiny = fit_sizes(preset("best"), TextSizes([30]), 20)
    assert (tiny.config.batch_size, tiny.config.seq_length) == (1, 26)
    assert len(tiny.notes) == 2


def test_an_alphabet_of_4500_characters() -> None:
    """The limit of the vocabulary grows to it."""
    fitted = fit_sizes(preset("quick"), TextSizes([20_000]), 4500)
    assert fitted.config.max_vocab == 4500
    assert fitted.notes == ("max_vocab is 4,500 instead of 4,096: the text has 4,500 distinct characters",)


@pytest.mark.parametrize("length", range(4, 20))
def test_a_text_of_a_few_characters_has_a_validation_part(length: int) -> None:
    """Two characters, the least that has a loss, out of no more than half of the text."""
    fitted = fit_sizes(TrainConfig(), TextSizes([length]), 3)
    check_lengths(TextSizes([length]), fitted.config)
    assert int(length * fitted.config.val_fraction) == 2


@pytest.mark.parametrize(
    ("given_settings", "lengths", "field", "expected"),
    [
        ({"seq_length": 512}, [300], "seq_length", "at most 269 (the training part has 270 characters)"),
        (
            {"seq_length": 100, "batch_size": 8},
            [300],
            "seq_length",
            "at most 32 (the training part has 270 characters and batch_size is 8)",
        ),
        ({"batch_size": 256}, [300], "batch_size", "at most 135 (the training part has 270 characters)"),
        ({"val_fraction": 0.01}, [100], "val_fraction", "at least 0.02 for a text of 100 characters"),
        ({"test_fraction": 0.01}, [100], "test_fraction", "at least 0.02 or 0, for this text"),
    ],
)
def test_what_was_set_explicitly_is_never_changed(
    given_settings: dict[str, Any], lengths: list[int], field: str, expected: str
) -> None:
    """If it cannot work with the text, the error names field, value and what would work."""
    config = replace(TrainConfig(), **given_settings)
    with pytest.raises(ConfigError) as e:
        fit_sizes(config, TextSizes(lengths), 10, explicit=given_settings)
    error: Any = e.value
    assert (error.field, error.value, error.expected) == (field, getattr(config, field), expected)


def test_an_explicit_batch_shortens_the_window() -> None:
    """Of batch and window, the one that nobody set gives way."""
    fitted = fit_sizes(TrainConfig(batch_size=32), TextSizes([300]), 10, explicit=["batch_size"])
    assert (fitted.config.batch_size, fitted.config.seq_length) == (32, 7)


def test_threads_that_were_set_share_the_batch() -> None:
    """The rows stay a multiple of `workers`."""
    fitted = fit_sizes(TrainConfig(workers=4, seq_length=24), TextSizes([300]), 10, explicit=["workers"])
    assert fitted.config.batch_size == 8


def sizes_of(items: list[str]) -> SplittableItems:
    return SplittableItems.of(items_of("\n".join(items), ItemLayout("lines"), "the list", "none"))


def test_a_window_holds_the_items_of_a_list() -> None:
    """95% of them, ends counted, unless that is very long, would make the batch smaller, or somebody set it."""
    items = [f"{i:040d}" for i in range(950)] + [f"{i:0400d}" for i in range(50)]
    fitted = fit_sizes(preset("quick"), sizes_of(items), 10)
    assert fitted.config == replace(preset("quick"), seq_length=41)
    assert "the end of an item may depend on its beginning" in fitted.notes[0]
    assert fit_sizes(preset("quick"), sizes_of(items), 10, explicit=["seq_length"]).config.seq_length == 32
    assert fit_sizes(preset("quick"), sizes_of([f"{i:0400d}" for i in range(500)]), 10).config.seq_length == 128
    assert fit_sizes(preset("quick"), sizes_of([f"{i:07d}" for i in range(500)]), 10).notes == ()
    few = fit_sizes(preset("quick"), sizes_of([f"{i:060d}" for i in range(12)]), 10).config
    assert few.batch_size == preset("quick").batch_size
    assert 24 < few.seq_length < 61


def test_dropout_grows_with_the_epochs_of_a_budget() -> None:
    """A text that is read a few times has the preset's; a small one, read often, has more; nothing else changes."""
    quick, best = preset("quick"), preset("best")
    a_minute = replace(quick, minutes=1.0)
    assert fit_to_text(a_minute, shape("quick"), TextSizes([1_100_000]), 65) == FittedConfig(a_minute, ())
    small = fit_to_text(quick, shape("quick"), TextSizes([110_000]), 65)
    assert 0.4 <= small.config.dropout <= 0.5
    assert 0.3 <= small.config.weight_drop <= 0.5
    assert [note.split(":")[1] for note in small.notes] == [" the training part is read about 180 times"] * 2
    assert replace(small.config, dropout=quick.dropout, weight_drop=0.0) == quick
    enough = replace(best, epochs=20.0)  # `best` has what so many need
    assert fit_to_text(enough, shape("best"), TextSizes([1_100_000]), 65) == FittedConfig(enough, ())


@given(minutes=st.floats(0.01, 1e5), length=st.integers(500, 10**9), name=st.sampled_from(sorted(PRESETS)))
def test_more_epochs_never_mean_less_dropout(minutes: float, length: int, name: str) -> None:
    """Twice the minutes on the same text have as much dropout or more, never above one half or below the preset's."""
    once, twice = (
        fit_to_text(replace(preset(name), minutes=m), shape(name), TextSizes([length]), 65).config
        for m in (minutes, 2 * minutes if minutes <= 5e4 else 1e5)
    )
    for setting in ("dropout", "weight_drop"):
        assert getattr(preset(name), setting) <= getattr(once, setting) <= getattr(twice, setting) <= 0.5


def test_dropout_that_was_set_stays() -> None:
    """Zero is a value like any other, and each of the two is looked at by itself."""
    fitted = fit_to_text(
        replace(preset("quick"), dropout=0.0), shape("quick"), TextSizes([50_000]), 65, explicit=["dropout"]
    )
    assert fitted.config.dropout == 0.0
    assert fitted.config.weight_drop > 0.3


@pytest.mark.parametrize(
    ("budget", "epochs"), [({"steps": 1000}, 5.12), ({"epochs": 7.5}, 7.5), ({"minutes": 2.0}, 60.0)]
)
def test_the_epochs_of_a_budget(budget: dict[str, float], epochs: float) -> None:
    """In steps or epochs they are known; of minutes an estimate for two cores, by the parameters of the network."""
    config = TrainConfig.from_dict({"batch_size": 16, "seq_length": 32, **budget})
    model = ModelConfig(65, n_hidden=320)
    n_train = 100_000 if "minutes" not in budget else round(3e12 / model.n_parameters / 30)
    assert expected_epochs(config, model, n_train) == pytest.approx(epochs, rel=1e-3)


def test_a_text_that_is_no_text() -> None:
    """Three characters cannot be split; the error says how many can."""
    with pytest.raises(TextTooShort, match="the text has 3 characters, expected at least 4"):
        fit_sizes(TrainConfig(), TextSizes([3]), 2)
