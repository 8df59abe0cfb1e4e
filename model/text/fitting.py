"""Training settings that fit a text: what nobody set is adapted to a small text or a large alphabet.

Every door to training uses this: the command line, the launcher, the page and POST /retrain. A setting that was set
explicitly is never changed. When it cannot work with the text, the error names it and what would work.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from model.config import TrainConfig
from model.errors import ConfigError, TextTooShort
from model.text.corpus import MIN_EVALUATION_CHARS, CorpusSizes, TextSizes
from model.text.items.splitting import SplittableItems

_MAX_VAL_FRACTION = 0.5
MAX_VOCABULARY = 65536  # an id has 16 bits

_WHOLE_SHARE = 0.95
"""Of the items of a list, those that a window holds: how an item ends may depend on how it began."""
_LONGEST_WINDOW = 128
"""Longer windows for longer items would make too few steps of a short run."""


@dataclass(frozen=True, slots=True)
class FittedConfig:
    """Settings that fit a text.

    Attributes:
        config: The settings.
        notes: A sentence for each setting that was changed.
    """

    config: TrainConfig
    notes: tuple[str, ...]


def fit_to_text(
    config: TrainConfig,
    sizes: CorpusSizes,
    n_distinct: int,
    *,
    explicit: Collection[str] = (),
    n_processes: int = 1,
) -> FittedConfig:
    """Adapt the settings that nobody set to the sizes of a text.

    In this order, and only as far as needed: `max_vocab` grows to the alphabet, `val_fraction` grows until the
    validation part has two characters, `seq_length` grows to the items of a list, `batch_size` shrinks until all
    rows of a batch fit into the training part, and then `seq_length`.

    Args:
        config: The settings.
        sizes: The lengths of the texts, or a list's items.
        n_distinct: How many distinct characters all of them have.
        explicit: The names of the settings that must not be changed.
        n_processes: How many processes share a batch; each needs the same number of rows.

    Raises:
        ConfigError: An explicit setting cannot work with this text.
        TextTooShort: No setting could make it work.
    """
    notes: list[str] = []

    def change(name: str, value: float, reason: str) -> None:
        nonlocal config
        notes.append(f"{name} is {value:,} instead of {getattr(config, name):,}: {reason}")
        changed: dict[str, Any] = {name: value}
        config = replace(config, **changed)

    if config.max_vocab < n_distinct <= MAX_VOCABULARY:
        reason = f"the text has {n_distinct:,} distinct characters"
        _check(config, "max_vocab", explicit, f"at least {n_distinct} ({reason})")
        change("max_vocab", n_distinct, reason)

    n_val, n_test = sizes.evaluation_sizes(config)
    if n_val < MIN_EVALUATION_CHARS:
        fraction, subject = sizes.smallest_fraction(), _description(sizes)
        _check(config, "val_fraction", explicit, f"at least {fraction:g} for {subject}")
        if fraction > _MAX_VAL_FRACTION:
            raise _too_short(sizes, needed=2 * MIN_EVALUATION_CHARS)
        change("val_fraction", fraction, f"this is {subject}")
    if config.test_fraction and n_test < MIN_EVALUATION_CHARS:
        fraction = sizes.smallest_fraction()
        _check(config, "test_fraction", ["test_fraction"], f"at least {fraction:g} or 0, for this text")

    n_train = sizes.n_characters - sum(sizes.evaluation_sizes(config))
    if isinstance(sizes, SplittableItems) and "seq_length" not in explicit:
        length = min(sizes.length_of(_WHOLE_SHARE), _LONGEST_WINDOW, n_train // config.batch_size - 1)
        if length > config.seq_length:
            change("seq_length", length, "the end of an item may depend on its beginning, and most items are as long")

    multiple = n_processes * max(1, config.workers)  # of rows: each process and each of its threads takes as many
    if config.batch_size * (config.seq_length + 1) <= n_train:
        return FittedConfig(config, tuple(notes))
    reason = f"the training part has {n_train:,} characters"
    if n_train < 2 * multiple:
        raise _too_short(sizes, needed=math.ceil(2 * multiple / (1 - config.val_fraction - config.test_fraction)) + 1)
    if "batch_size" not in explicit:
        rows = max(multiple, n_train // (config.seq_length + 1) // multiple * multiple)
        if rows < config.batch_size:
            change("batch_size", rows, reason)
    longest = n_train // config.batch_size - 1
    if config.seq_length > longest:
        if longest < 1:
            _check(config, "batch_size", ["batch_size"], f"at most {n_train // 2} ({reason})")
        rows_given = f" and batch_size is {config.batch_size}" if "batch_size" in explicit else ""
        _check(config, "seq_length", explicit, f"at most {longest} ({reason}{rows_given})")
        change("seq_length", longest, reason)
    return FittedConfig(config, tuple(notes))


def _description(sizes: CorpusSizes) -> str:
    if isinstance(sizes, TextSizes):
        return f"a text of {max(sizes.lengths):,} characters"
    return f"a list of {len(sizes.items):,} items"


def _check(config: TrainConfig, name: str, explicit: Collection[str], expected: str) -> None:
    """Raise a ConfigError about a setting, if it was set explicitly."""
    if name in explicit:
        raise ConfigError(field=name, value=getattr(config, name), expected=expected)


def _too_short(sizes: CorpusSizes, needed: int) -> TextTooShort:
    kind = "text" if isinstance(sizes, TextSizes) else "list"
    return TextTooShort(f"the {kind} has {sizes.n_characters} characters", needed=needed, expected=f"at least {needed}")
