"""Settings that fit a text: whatever its size and alphabet, it can be trained on, and every change is reported."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import PRESETS, TrainConfig
from model.errors import ConfigError, TextTooShort
from model.text.corpus import TextSizes, check_lengths
from model.text.fitting import FittedConfig, fit_to_text
from model.text.items.layout import ItemLayout
from model.text.items.reading import items_of
from model.text.items.splitting import SplittableItems


def preset(name: str) -> TrainConfig:
    """The training settings of a preset."""
    names = TrainConfig().as_dict()
    return TrainConfig(**{k: v for k, v in PRESETS[name].items() if k in names})


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
            fit_to_text(before, TextSizes(lengths), 2, n_processes=n_processes)
        return
    fitted = fit_to_text(before, TextSizes(lengths), 2, n_processes=n_processes)
    check_lengths(TextSizes(lengths), fitted.config)
    assert fitted.config.batch_size % n_processes == 0 or fitted.config.batch_size == before.batch_size
    changed = [k for k, v in fitted.config.as_dict().items() if v != getattr(before, k)]
    assert {note.split()[0] for note in fitted.notes} == set(changed)


def test_a_text_that_fits_changes_nothing() -> None:
    """The settings of a text of usual size are those that were given, without a note."""
    config = preset("best")
    assert fit_to_text(config, TextSizes([100_000, 20]), 90) == FittedConfig(config, ())


def test_a_text_of_300_characters() -> None:
    """The batch shrinks first: the window, which says how far a gradient reaches, stays as long as it can."""
    fitted = fit_to_text(preset("quick"), TextSizes([300]), 40)
    assert (fitted.config.batch_size, fitted.config.seq_length) == (8, 32)
    assert fitted.notes == ("batch_size is 8 instead of 16: the training part has 270 characters",)
    tiny = fit_to_text(preset("best"), TextSizes([30]), 20)
    assert (tiny.config.batch_size, tiny.config.seq_length) == (1, 26)
    assert len(tiny.notes) == 2


def test_an_alphabet_of_4500_characters() -> None:
    """The limit of the vocabulary grows to it."""
    fitted = fit_to_text(preset("quick"), TextSizes([20_000]), 4500)
    assert fitted.config.max_vocab == 4500
    assert fitted.notes == ("max_vocab is 4,500 instead of 4,096: the text has 4,500 distinct characters",)


@pytest.mark.parametrize("length", range(4, 20))
def test_a_text_of_a_few_characters_has_a_validation_part(length: int) -> None:
    """Two characters, the least that has a loss, out of no more than half of the text."""
    fitted = fit_to_text(TrainConfig(), TextSizes([length]), 3)
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
        fit_to_text(config, TextSizes(lengths), 10, explicit=given_settings)
    error: Any = e.value
    assert (error.field, error.value, error.expected) == (field, getattr(config, field), expected)


def test_an_explicit_batch_shortens_the_window() -> None:
    """Of batch and window, the one that nobody set gives way."""
    fitted = fit_to_text(TrainConfig(batch_size=32), TextSizes([300]), 10, explicit=["batch_size"])
    assert (fitted.config.batch_size, fitted.config.seq_length) == (32, 7)


def test_threads_that_were_set_share_the_batch() -> None:
    """The rows stay a multiple of `workers`."""
    fitted = fit_to_text(TrainConfig(workers=4, seq_length=24), TextSizes([300]), 10, explicit=["workers"])
    assert fitted.config.batch_size == 8


def sizes_of(items: list[str]) -> SplittableItems:
    return SplittableItems.of(items_of("\n".join(items), ItemLayout("lines"), "the list", "none"))


def test_a_window_holds_the_items_of_a_list() -> None:
    """95% of them, ends counted, unless that is very long, would make the batch smaller, or somebody set it."""
    items = [f"{i:040d}" for i in range(950)] + [f"{i:0400d}" for i in range(50)]
    fitted = fit_to_text(preset("quick"), sizes_of(items), 10)
    assert fitted.config == replace(preset("quick"), seq_length=41)
    assert "the end of an item may depend on its beginning" in fitted.notes[0]
    assert fit_to_text(preset("quick"), sizes_of(items), 10, explicit=["seq_length"]).config.seq_length == 32
    assert fit_to_text(preset("quick"), sizes_of([f"{i:0400d}" for i in range(500)]), 10).config.seq_length == 128
    assert fit_to_text(preset("quick"), sizes_of([f"{i:07d}" for i in range(500)]), 10).notes == ()
    few = fit_to_text(preset("quick"), sizes_of([f"{i:060d}" for i in range(12)]), 10).config
    assert few.batch_size == preset("quick").batch_size
    assert 24 < few.seq_length < 61


def test_a_text_that_is_no_text() -> None:
    """Three characters cannot be split; the error says how many can."""
    with pytest.raises(TextTooShort, match="the text has 3 characters, expected at least 4"):
        fit_to_text(TrainConfig(), TextSizes([3]), 2)
