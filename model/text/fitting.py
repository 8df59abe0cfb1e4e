"""Training settings that fit a text and a budget: what nobody set is adapted to a small text, or a large alphabet.

Every door to training uses this: the command line, the launcher, the page and POST /retrain. A setting that was set
explicitly is never changed. When it cannot work with the text, the error names it and what would work.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, TextTooShort
from model.text.corpus import MIN_EVALUATION_CHARS, CorpusSizes, TextSizes
from model.text.items.splitting import SplittableItems

_MAX_VAL_FRACTION = 0.5
MAX_VOCABULARY = 65536  # an id has 16 bits

_WHOLE_SHARE = 0.95
"""Of the items of a list, those that a window holds: how an item ends may depend on how it began."""
_LONGEST_WINDOW = 128
"""Longer windows for longer items would make too few steps of a short run."""

_WORK_PER_MINUTE = 3e12
"""Parameters times characters that two cores train on in a minute. Machines had a third to twice of it: it is not
measured, so that a request means the same settings everywhere."""
_FEW_EPOCHS = 10.0
"""As many readings need no more than the preset's dropout."""
_DROPOUT = {"dropout": (0.25, 0.08), "weight_drop": (0.0, 0.12)}
"""What so many epochs need at least, and how much more for each doubling: docs/decisions/0051-many-epochs.md."""
_MOST_DROPOUT = 0.5


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
    model: ModelConfig,
    sizes: CorpusSizes,
    n_distinct: int,
    *,
    explicit: Collection[str] = (),
    n_processes: int = 1,
) -> FittedConfig:
    """Adapt the settings that nobody set to the sizes of a text, and to how often the budget reads it.

    In this order, and only as far as needed: `max_vocab` grows to the alphabet, `val_fraction` grows until the
    validation part has two characters, `dropout` and `weight_drop` grow with the epochs of the budget, `seq_length`
    grows to the items of a list, `batch_size` shrinks until all rows of a batch fit into the training part, and then
    `seq_length`.

    Args:
        config: The settings.
        model: The shape of the network; `vocab_size` may be any.
        sizes: The lengths of the texts, or a list's items.
        n_distinct: How many distinct characters all of them have.
        explicit: The names of the settings that must not be changed.
        n_processes: How many processes share a batch; each needs the same number of rows.

    Raises:
        ConfigError: An explicit setting cannot work with this text.
        TextTooShort: No setting could make it work.
    """
    fitting = _Fitting(config, explicit)
    fitting.fit_alphabet(n_distinct)
    fitting.fit_evaluation_parts(sizes)
    n_train = sizes.n_characters - sum(sizes.evaluation_sizes(fitting.config))
    fitting.fit_dropout(expected_epochs(config, model, n_train))
    if isinstance(sizes, SplittableItems):
        fitting.fit_windows_to_items(sizes, n_train)
    fitting.fit_batch(sizes, n_train, n_processes)
    return FittedConfig(fitting.config, tuple(fitting.notes))


def expected_epochs(config: TrainConfig, model: ModelConfig, n_train: int) -> float:
    """Return how often a budget reads the training part; for one in minutes about how often, on two cores."""
    if config.steps:
        return config.steps * config.batch_size * config.seq_length / max(1, n_train)
    if config.epochs:
        return config.epochs
    return config.minutes * _WORK_PER_MINUTE / model.n_parameters / max(1, n_train)


class _Fitting:
    """The settings as far as they are adapted, and a sentence for each that was changed."""

    def __init__(self, config: TrainConfig, explicit: Collection[str]) -> None:
        self.config, self._explicit = config, explicit
        self.notes: list[str] = []

    def fit_alphabet(self, n_distinct: int) -> None:
        if self.config.max_vocab < n_distinct <= MAX_VOCABULARY:
            reason = f"the text has {n_distinct:,} distinct characters"
            self._refuse_if_explicit("max_vocab", f"at least {n_distinct} ({reason})")
            self._change("max_vocab", n_distinct, reason)

    def fit_evaluation_parts(self, sizes: CorpusSizes) -> None:
        n_val, n_test = sizes.evaluation_sizes(self.config)
        if n_val < MIN_EVALUATION_CHARS:
            fraction, subject = sizes.smallest_fraction(), _description(sizes)
            self._refuse_if_explicit("val_fraction", f"at least {fraction:g} for {subject}")
            if fraction > _MAX_VAL_FRACTION:
                raise _too_short(sizes, needed=2 * MIN_EVALUATION_CHARS)
            self._change("val_fraction", fraction, f"this is {subject}")
        if self.config.test_fraction and n_test < MIN_EVALUATION_CHARS:
            expected = f"at least {sizes.smallest_fraction():g} or 0, for this text"
            raise ConfigError(field="test_fraction", value=self.config.test_fraction, expected=expected)

    def fit_dropout(self, epochs: float) -> None:
        if epochs <= _FEW_EPOCHS:
            return
        reason = f"the training part is read about {float(f'{epochs:.2g}'):,.0f} times"
        for name, (at_few, per_doubling) in _DROPOUT.items():
            needed = round(min(at_few + per_doubling * math.log2(epochs / _FEW_EPOCHS), _MOST_DROPOUT), 2)
            if name not in self._explicit and needed > getattr(self.config, name):
                self._change(name, needed, reason)

    def fit_windows_to_items(self, items: SplittableItems, n_train: int) -> None:
        length = min(items.length_of(_WHOLE_SHARE), _LONGEST_WINDOW, n_train // self.config.batch_size - 1)
        if "seq_length" not in self._explicit and length > self.config.seq_length:
            reason = "the end of an item may depend on its beginning, and most items are as long"
            self._change("seq_length", length, reason)

    def fit_batch(self, sizes: CorpusSizes, n_train: int, n_processes: int) -> None:
        config, reason = self.config, f"the training part has {n_train:,} characters"
        if config.batch_size * (config.seq_length + 1) <= n_train:
            return
        multiple = n_processes * max(1, config.workers)  # of rows: each process and each of its threads takes as many
        if n_train < 2 * multiple:
            part = 1 - config.val_fraction - config.test_fraction
            raise _too_short(sizes, needed=math.ceil(2 * multiple / part) + 1)
        if "batch_size" not in self._explicit:
            rows = max(multiple, n_train // (config.seq_length + 1) // multiple * multiple)
            if rows < config.batch_size:
                self._change("batch_size", rows, reason)
        batch_size = self.config.batch_size
        longest = n_train // batch_size - 1
        if config.seq_length > longest:
            if longest < 1:
                expected = f"at most {n_train // 2} ({reason})"
                raise ConfigError(field="batch_size", value=batch_size, expected=expected)
            rows_given = f" and batch_size is {batch_size}" if "batch_size" in self._explicit else ""
            self._refuse_if_explicit("seq_length", f"at most {longest} ({reason}{rows_given})")
            self._change("seq_length", longest, reason)

    def _change(self, name: str, value: float, reason: str) -> None:
        self.notes.append(f"{name} is {value:,} instead of {getattr(self.config, name):,}: {reason}")
        changed: dict[str, Any] = {name: value}
        self.config = replace(self.config, **changed)

    def _refuse_if_explicit(self, name: str, expected: str) -> None:
        if name in self._explicit:
            raise ConfigError(field=name, value=getattr(self.config, name), expected=expected)


def _description(sizes: CorpusSizes) -> str:
    if isinstance(sizes, TextSizes):
        return f"a text of {max(sizes.lengths):,} characters"
    return f"a list of {len(sizes.items):,} items"


def _too_short(sizes: CorpusSizes, needed: int) -> TextTooShort:
    kind = "text" if isinstance(sizes, TextSizes) else "list"
    return TextTooShort(f"the {kind} has {sizes.n_characters} characters", needed=needed, expected=f"at least {needed}")
