"""What a run's numbers say, in words: a table of rules, each with the numbers it rests on and what to try.

Pure functions over numbers; they know no network and no file. Rules speak when they have something to say, and each has
a test with numbers that trigger it and numbers that do not. The limits are rules of thumb, marked with their source
where there is one; the figures in the message let a reader judge for himself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_LARGE_PER_CHARACTER = 3.0  # parameters a character; the course's advice: keep both of the same order of magnitude
_SMALL_PER_CHARACTER = 0.05
_SMALL_VALIDATION = 10_000  # characters: the standard error of a mean of nats (spread about 1.5) is then 0.015
_OVERFIT = 0.15  # nats by which validation may lie above training before it is called overfitting
_UNDERFIT = 0.03
_RISING = 0.02  # nats above the best
_UNSTABLE_STATE = 0.15  # nats by which the whole part may be above a sample of it: ten standard errors of a small one


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a run begins."""

    n_parameters: int
    n_train: int  # characters
    n_val: int
    n_vocab: int
    dropout: float
    seq_length: int


@dataclass(frozen=True, slots=True)
class Look:
    """A look at the validation part."""

    step: int
    train_loss: float  # nats per character
    val_loss: float


@dataclass(frozen=True, slots=True)
class Advice:
    """A rule's name and what it says."""

    rule: str
    text: str


def at_start(facts: Facts) -> list[Advice]:
    """What the sizes alone say."""
    return _said(_AT_START, facts)


def of_curve(facts: Facts, looks: Sequence[Look]) -> list[Advice]:
    """What the losses so far say; for use during a run and after it."""
    return _said(_OF_CURVE, facts, looks) if looks else []


def of_whole(best_look: float, whole: float) -> list[Advice]:
    """What the loss of the whole validation part says, beside the best of the looks at samples of it."""
    return _said(_OF_WHOLE, best_look, whole)


def _said(rules: dict[str, Callable[..., str | None]], *numbers: object) -> list[Advice]:
    found = [(name, rule(*numbers)) for name, rule in rules.items()]
    return [Advice(name, text) for name, text in found if text is not None]


def _large(f: Facts) -> str | None:
    ratio = f.n_parameters / f.n_train
    if ratio <= _LARGE_PER_CHARACTER or f.dropout >= 0.3:
        return None
    return (
        f"{f.n_parameters:,} parameters for {f.n_train:,} characters are {ratio:.1f} a character: it can learn the "
        f"text by heart; try a smaller n_hidden, or dropout (now {f.dropout:g}) of 0.3 to 0.5"
    )


def _small(f: Facts) -> str | None:
    ratio = f.n_parameters / f.n_train
    if ratio >= _SMALL_PER_CHARACTER:
        return None
    return (
        f"{f.n_parameters:,} parameters for {f.n_train:,} characters are {ratio:.3f} a character: the text has more to "
        "teach than it can hold; a larger n_hidden would use it, given the minutes"
    )


def _validation(f: Facts) -> str | None:
    if f.n_val >= _SMALL_VALIDATION:
        return None
    error = 1.5 / max(1, f.n_val) ** 0.5
    return (
        f"the validation part has {f.n_val:,} characters: its loss is uncertain by about {error:.3f} nats, so small "
        "differences mean nothing; give it more text, or a larger val_fraction"
    )


def _vocabulary(f: Facts) -> str | None:
    if f.n_train >= 200 * f.n_vocab:
        return None
    return (
        f"{f.n_vocab:,} distinct characters in {f.n_train:,}: each is seen {f.n_train / f.n_vocab:.0f} times on "
        "average, too seldom to be learnt well; more text, or fewer kinds of characters"
    )


def _overfitting(f: Facts, looks: Sequence[Look]) -> str | None:
    best = min(looks, key=lambda look: look.val_loss)
    last = looks[-1]
    gap = last.val_loss - last.train_loss
    if gap < _OVERFIT or len(looks) < 3 or last.val_loss < best.val_loss + _RISING:
        return None
    return (
        f"overfitting: validation {last.val_loss:.3f} is {gap:.3f} above training {last.train_loss:.3f}, and "
        f"{last.val_loss - best.val_loss:.3f} above its best {best.val_loss:.3f} at step {best.step:,}; try more "
        f"dropout (now {f.dropout:g}), weight_drop, a smaller n_hidden or fewer steps"
    )


def _memorising(f: Facts, looks: Sequence[Look]) -> str | None:
    last = looks[-1]
    gap = last.val_loss - last.train_loss
    if gap < _OVERFIT or _overfitting(f, looks) is not None:
        return None
    return (
        f"training {last.train_loss:.3f} is {gap:.3f} below validation {last.val_loss:.3f}, which still falls: more "
        f"dropout (now {f.dropout:g}) may bring validation lower yet, in a longer run"
    )


def _underfitting(f: Facts, looks: Sequence[Look]) -> str | None:
    last = looks[-1]
    gap = last.val_loss - last.train_loss
    if gap > _UNDERFIT or len(looks) < 3:
        return None
    what = "less dropout, " if f.dropout > 0.1 else ""
    return (
        f"underfitting: validation {last.val_loss:.3f} and training {last.train_loss:.3f} are {gap:+.3f} apart: it has "
        f"not learnt by heart and could learn more; try {what}a larger n_hidden, another layer or more minutes"
    )


def _falling(f: Facts, looks: Sequence[Look]) -> str | None:
    if len(looks) < 4 or looks[-1].val_loss > min(look.val_loss for look in looks):
        return None
    fell = looks[-2].val_loss - looks[-1].val_loss
    share = fell / max(1e-9, looks[0].val_loss - looks[-1].val_loss)
    if share < 0.1:
        return None
    return (
        f"validation fell by {fell:.3f} between the last two looks, {share:.0%} of all it fell: the run was too short; "
        "more minutes will pay"
    )


def _unstable(f: Facts, looks: Sequence[Look]) -> str | None:
    jumps = [(b.train_loss - a.train_loss, b) for a, b in pairwise(looks)]
    worst = max(jumps, default=(0.0, looks[0]), key=lambda jump: jump[0])
    if worst[0] < 0.3:
        return None
    return (
        f"unstable: training rose by {worst[0]:.3f} before step {worst[1].step:,}; try a smaller lr, a smaller clip or "
        "a longer warmup"
    )


def _unstable_state(best_look: float, whole: float) -> str | None:
    if whole < best_look + _UNSTABLE_STATE:
        return None
    return (
        f"unstable_state: the whole validation part costs {whole:.3f} nats a character, its samples {best_look:.3f}: "
        "there are places from which the network does not find back, and a text may begin in one; try another seed, a "
        "larger reset or a smaller lr"
    )


_AT_START: dict[str, Callable[..., str | None]] = {
    "large": _large,
    "small": _small,
    "validation": _validation,
    "vocabulary": _vocabulary,
}
_OF_CURVE: dict[str, Callable[..., str | None]] = {
    "overfitting": _overfitting,
    "memorising": _memorising,
    "underfitting": _underfitting,
    "falling": _falling,
    "unstable": _unstable,
}
_OF_WHOLE: dict[str, Callable[..., str | None]] = {"unstable_state": _unstable_state}
