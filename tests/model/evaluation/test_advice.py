"""Each piece of advice has numbers that call for it, and numbers that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.evaluation.advice import TrainingSetup, advise_on_final_loss, advise_on_losses, advise_on_setup
from model.evaluation.validation_sample import Validation
from model.text.corpus import CorpusItems
from model.text.items.layout import ItemLayout
from model.text.items.record import ItemRecord

SOUND = TrainingSetup(n_parameters=1_000_000, n_train=1_000_000, n_val=100_000, vocab_size=65, dropout=0.35)

RECORD = ItemRecord(ItemLayout("lines"), n_train=90_000, n_val=10_000, n_test=0, n_distinct=95_000)
LIST = CorpusItems(RECORD, n_patterns=90_000, longest=40, mean_length=10.0)
FEW = CorpusItems(replace(RECORD, n_distinct=900, n_train=900, n_val=200), 900, 40, 10.0)
EQUAL = CorpusItems(replace(RECORD, n_distinct=40_000), 40_000, 40, 10.0)


def curve(*losses: tuple[float, float]) -> list[Validation]:
    return [Validation(100 * (i + 1), 10.0 * i, train, val) for i, (train, val) in enumerate(losses)]


HEALTHY = curve((2.0, 2.0), (1.6, 1.65), (1.5, 1.58), (1.45, 1.55), (1.44, 1.54))


@pytest.mark.parametrize(
    ("rule", "setup"),
    [
        ("many_parameters", replace(SOUND, n_train=100_000, dropout=0.0)),
        ("few_parameters", replace(SOUND, n_train=100_000_000)),
        ("small_validation_part", replace(SOUND, n_val=2_000)),
        ("rare_characters", replace(SOUND, vocab_size=20_000)),
        ("few_items", replace(SOUND, items=FEW)),
        ("duplicate_items", replace(SOUND, items=EQUAL)),
        ("items_that_differ_in_digits", replace(SOUND, items=replace(LIST, n_patterns=12))),
        ("unequal_lengths", replace(SOUND, items=replace(LIST, longest=900))),
        ("few_validation_items", replace(SOUND, items=replace(LIST, record=replace(RECORD, n_val=40)))),
    ],
)
def test_sizes_that_call_for_advice(rule: str, setup: TrainingSetup) -> None:
    """Exactly the rule that is meant speaks, and not for sound sizes."""
    assert [a.rule for a in advise_on_setup(setup)] == [rule]
    assert advise_on_setup(SOUND) == []
    assert advise_on_setup(replace(SOUND, items=LIST)) == []


@pytest.mark.parametrize(
    ("rule", "validations"),
    [
        ("overfitting", curve((2.0, 2.0), (1.5, 1.6), (1.3, 1.58), (1.1, 1.63), (0.9, 1.75))),
        ("memorization", curve((2.0, 2.0), (1.6, 1.7), (1.4, 1.59), (1.35, 1.54), (1.33, 1.53))),
        ("underfitting", curve((2.3, 2.3), (2.0, 2.0), (1.95, 1.95), (1.94, 1.94), (1.935, 1.935))),
        ("still_improving", curve((2.4, 2.4), (2.1, 2.2), (1.9, 2.0), (1.7, 1.8))),
        ("unstable_training", curve((2.0, 2.0), (1.6, 1.65), (2.4, 2.46), (1.5, 1.58), (1.45, 1.55), (1.44, 1.54))),
    ],
)
def test_curves_that_call_for_advice(rule: str, validations: list[Validation]) -> None:
    """Exactly the rule that is meant speaks, with the numbers it rests on, and not for a healthy curve."""
    (advice,) = advise_on_losses(SOUND, validations)
    assert advice.rule == rule
    values = [value for v in validations for value in (v.val_loss, v.train_loss)]
    assert any(f"{v:.3f}" in advice.text for v in values) or rule in ("still_improving", "unstable_training")
    assert "; try" in advice.text
    assert advise_on_losses(SOUND, HEALTHY) == []


def test_a_state_that_does_not_recover() -> None:
    """A whole part far above its samples calls for advice, with both losses; a sample's own error does not."""
    (advice,) = advise_on_final_loss(1.523, 1.943)
    assert advice.rule == "unstable_state"
    assert "1.943" in advice.text
    assert "1.523" in advice.text
    assert "try" in advice.text
    assert advise_on_final_loss(1.523, 1.56) == []
    assert advise_on_final_loss(1.523, 1.4) == []


def test_dropout_answers_the_large_network() -> None:
    """Many parameters a character are no matter where enough is dropped."""
    large = replace(SOUND, n_train=100_000)
    assert [a.rule for a in advise_on_setup(replace(large, dropout=0.1))] == ["many_parameters"]
    assert advise_on_setup(large) == []


def test_no_validation_no_advice() -> None:
    """Before the first validation no rule on losses applies."""
    assert advise_on_losses(SOUND, []) == []
