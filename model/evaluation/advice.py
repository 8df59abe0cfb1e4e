"""Advice on a run: a table of rules; the advice of each names the numbers that it is based on and what to try.

Pure functions over numbers; no network and no file. A rule returns its advice, or None when it does not apply; a test
has numbers for both cases. The thresholds are rules of thumb, with their source where there is one; the figures in the
text let the reader judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from model.config import ModelConfig, TrainConfig
from model.evaluation.validation_sample import Validation
from model.text.corpus import Corpus, CorpusItems

_MANY_PER_CHARACTER = 3.0  # parameters; char-rnn's README advises the same order of magnitude as the characters
_FEW_PER_CHARACTER = 0.05
_ENOUGH_DROPOUT = 0.3
_SMALL_VALIDATION = 10_000  # characters: the standard error of a mean of nats (standard deviation 1.5) is then 0.015
_SEEN_OFTEN = 200  # occurrences of a character, on average
_OVERFITTING = 0.15  # nats that the validation loss lies above the training loss
_UNDERFITTING = 0.03
_RISE = 0.02  # nats above the best validation loss
_MIN_VALIDATIONS = 3  # before a rule on overfitting or underfitting applies
_MIN_VALIDATIONS_TO_IMPROVE = 4
_LAST_DROP = 0.1  # part of the whole decrease that the last validation still brought
_LOSS_SPIKE = 0.3  # nats between two validations
_FEW_ITEMS = 1000  # different ones: fewer can be learned by heart before anything general is learned
_MANY_DUPLICATES = 0.5  # part of the items
_FEW_PATTERNS = 0.2  # different items when digits are taken for the same, of the different items
_UNEQUAL_LENGTHS = 20.0  # the longest item to the mean one
_SMALL_VALIDATION_ITEMS = 100
_UNSTABLE_STATE = 0.15  # nats that the whole part lies above a sample of it: ten standard errors of a small part


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """The numbers of a run that are known before its first step."""

    n_parameters: int
    n_train: int  # characters of the training part
    n_val: int  # characters of the validation part
    vocab_size: int
    dropout: float
    items: CorpusItems | None = None  # of a list

    @classmethod
    def of(cls, model: ModelConfig, config: TrainConfig, corpus: Corpus) -> Self:
        """Return the numbers of a run of this model on this corpus."""
        n_train, n_val, vocab_size = len(corpus.train), len(corpus.val), len(corpus.vocab)
        return cls(model.n_parameters, n_train, n_val, vocab_size, config.dropout, corpus.items)


@dataclass(frozen=True, slots=True)
class Advice:
    """The name of the rule that applies, and its advice."""

    rule: str
    text: str


def advise_on_setup(setup: TrainingSetup) -> list[Advice]:
    """Return advice on the sizes of the network and the text, before training."""
    return _apply(_SETUP_RULES, setup)


def advise_on_losses(setup: TrainingSetup, validations: Sequence[Validation]) -> list[Advice]:
    """Return advice on the losses so far, during a run and after it; none before the first validation."""
    return _apply(_LOSS_RULES, setup, validations) if validations else []


def advise_on_final_loss(best_val_loss: float, final_val_loss: float) -> list[Advice]:
    """Return advice on the final validation.

    Args:
        best_val_loss: The lowest loss of the validations during the run, each on a sample of the validation part.
        final_val_loss: The loss of the same weights on the whole part.
    """
    return _apply(_FINAL_RULES, best_val_loss, final_val_loss)


def _apply(rules: dict[str, Callable[..., str | None]], *numbers: object) -> list[Advice]:
    texts = {name: rule(*numbers) for name, rule in rules.items()}
    return [Advice(name, text) for name, text in texts.items() if text is not None]


def _many_parameters(s: TrainingSetup) -> str | None:
    ratio = s.n_parameters / s.n_train
    if ratio <= _MANY_PER_CHARACTER or s.dropout >= _ENOUGH_DROPOUT:
        return None
    return (
        f"many parameters: {s.n_parameters:,} for {s.n_train:,} characters are {ratio:.1f} a character, enough to "
        f"memorize the text; try a smaller n_hidden, or dropout (now {s.dropout:g}) of 0.3 to 0.5"
    )


def _few_parameters(s: TrainingSetup) -> str | None:
    ratio = s.n_parameters / s.n_train
    if ratio >= _FEW_PER_CHARACTER:
        return None
    return (
        f"few parameters: {s.n_parameters:,} for {s.n_train:,} characters are {ratio:.3f} a character, too few to "
        "learn all that the text has; try a larger n_hidden, with more minutes"
    )


def _small_validation_part(s: TrainingSetup) -> str | None:
    if s.n_val >= _SMALL_VALIDATION:
        return None
    error = 1.5 / max(1, s.n_val) ** 0.5
    return (
        f"small validation part: {s.n_val:,} characters, so the validation loss is uncertain by about {error:.3f} "
        "nats and smaller differences mean nothing; use more text, or a larger val_fraction"
    )


def _rare_characters(s: TrainingSetup) -> str | None:
    if s.n_train >= _SEEN_OFTEN * s.vocab_size:
        return None
    return (
        f"rare characters: {s.vocab_size:,} distinct ones in {s.n_train:,}, each seen {s.n_train / s.vocab_size:.0f} "
        "times on average, too seldom to be learned well; use more text, or a text with fewer distinct characters"
    )


def _few_items(s: TrainingSetup) -> str | None:
    if s.items is None or (n_distinct := s.items.record.n_distinct) >= _FEW_ITEMS:
        return None
    return (
        f"few items: {n_distinct:,} different ones can be learned by heart, and then nothing new is "
        f"generated; use more items, a smaller n_hidden or more dropout (now {s.dropout:g})"
    )


def _duplicate_items(s: TrainingSetup) -> str | None:
    if s.items is None:
        return None
    n = s.items.record.n_items
    n_equal = n - s.items.record.n_distinct
    if n_equal < _MANY_DUPLICATES * n:
        return None
    return (
        f"duplicate items: {n_equal:,} of {n:,} items equal another one, so the losses are mostly "
        "those of frequent items; if their frequency means nothing, try duplicates = drop"
    )


def _items_that_differ_in_digits(s: TrainingSetup) -> str | None:
    if s.items is None or s.items.n_patterns >= _FEW_PATTERNS * (n_distinct := s.items.record.n_distinct):
        return None
    return (
        f"items that differ in digits: {n_distinct:,} different items are {s.items.n_patterns:,} when digits "
        "are taken for the same, so equal texts with other numbers are in both parts, and the validation loss says "
        "little about new texts; replace the numbers by a placeholder, or split by a group column"
    )


def _unequal_lengths(s: TrainingSetup) -> str | None:
    if s.items is None or s.items.longest < _UNEQUAL_LENGTHS * max(1.0, s.items.mean_length):
        return None
    return (
        f"unequal lengths: the longest item has {s.items.longest:,} characters, the mean {s.items.mean_length:.0f}; "
        "is it one item? Try another separator, a smaller max_item_chars with long_items = cut, or skip"
    )


def _few_validation_items(s: TrainingSetup) -> str | None:
    if s.items is None or (n_val := s.items.record.n_val) >= _SMALL_VALIDATION_ITEMS:
        return None
    return (
        f"few validation items: ranks among {n_val:,} items are no finer than {100 / max(1, n_val):.1f}"
        "%; use more items, or a larger val_fraction"
    )


def _overfitting(s: TrainingSetup, validations: Sequence[Validation]) -> str | None:
    best = min(validations, key=lambda v: v.val_loss)
    last = validations[-1]
    gap = last.val_loss - last.train_loss
    if gap < _OVERFITTING or len(validations) < _MIN_VALIDATIONS or last.val_loss < best.val_loss + _RISE:
        return None
    return (
        f"overfitting: validation loss {last.val_loss:.3f} is {gap:.3f} above training loss {last.train_loss:.3f}, and "
        f"{last.val_loss - best.val_loss:.3f} above its best {best.val_loss:.3f} at step {best.step:,}; try more "
        f"dropout (now {s.dropout:g}), weight_drop, a smaller n_hidden or fewer steps"
    )


def _memorization(s: TrainingSetup, validations: Sequence[Validation]) -> str | None:
    last = validations[-1]
    gap = last.val_loss - last.train_loss
    if gap < _OVERFITTING or _overfitting(s, validations) is not None:
        return None
    return (
        f"memorization: training loss {last.train_loss:.3f} is {gap:.3f} below validation loss {last.val_loss:.3f}, "
        f"which still decreases; try more dropout (now {s.dropout:g}) in a longer run"
    )


def _underfitting(s: TrainingSetup, validations: Sequence[Validation]) -> str | None:
    last = validations[-1]
    gap = last.val_loss - last.train_loss
    if gap > _UNDERFITTING or len(validations) < _MIN_VALIDATIONS:
        return None
    less_dropout = "less dropout, " if s.dropout > 0.1 else ""
    return (
        f"underfitting: validation loss {last.val_loss:.3f} and training loss {last.train_loss:.3f} differ by "
        f"{gap:+.3f}: the network could learn more from this text; try {less_dropout}a larger n_hidden, another layer "
        "or more minutes"
    )


def _still_improving(_setup: TrainingSetup, validations: Sequence[Validation]) -> str | None:
    if len(validations) < _MIN_VALIDATIONS_TO_IMPROVE or validations[-1].val_loss > min(
        v.val_loss for v in validations
    ):
        return None
    drop = validations[-2].val_loss - validations[-1].val_loss
    share = drop / max(1e-9, validations[0].val_loss - validations[-1].val_loss)
    if share < _LAST_DROP:
        return None
    return (
        f"still improving: the last validation lowered the loss by {drop:.3f} nats, {share:.0%} of the whole decrease, "
        "so the run was too short; try more minutes"
    )


def _unstable_training(_setup: TrainingSetup, validations: Sequence[Validation]) -> str | None:
    rises = [(b.train_loss - a.train_loss, b.step) for a, b in pairwise(validations)]
    rise, step = max(rises, default=(0.0, 0), key=lambda entry: entry[0])
    if rise < _LOSS_SPIKE:
        return None
    return (
        f"unstable training: the training loss rose by {rise:.3f} before step {step:,}; try a smaller lr, a smaller "
        "clip or a longer warmup"
    )


def _unstable_state(best_val_loss: float, final_val_loss: float) -> str | None:
    if final_val_loss < best_val_loss + _UNSTABLE_STATE:
        return None
    return (
        f"unstable state: the loss is {final_val_loss:.3f} nats on the whole validation part but {best_val_loss:.3f} "
        "on samples of it. After some passages the hidden state does not recover, and generated text may stay bad; "
        "try another seed, a larger reset or a smaller lr"
    )


_SETUP_RULES: dict[str, Callable[..., str | None]] = {
    "many_parameters": _many_parameters,
    "few_parameters": _few_parameters,
    "small_validation_part": _small_validation_part,
    "rare_characters": _rare_characters,
    "few_items": _few_items,
    "duplicate_items": _duplicate_items,
    "items_that_differ_in_digits": _items_that_differ_in_digits,
    "unequal_lengths": _unequal_lengths,
    "few_validation_items": _few_validation_items,
}
_LOSS_RULES: dict[str, Callable[..., str | None]] = {
    "overfitting": _overfitting,
    "memorization": _memorization,
    "underfitting": _underfitting,
    "still_improving": _still_improving,
    "unstable_training": _unstable_training,
}
_FINAL_RULES: dict[str, Callable[..., str | None]] = {"unstable_state": _unstable_state}
