"""Each piece of advice has numbers that call for it, and numbers that do not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.evaluation.advice import Facts, Look, at_start, of_curve, of_whole

SOUND = Facts(n_parameters=1_000_000, n_train=1_000_000, n_val=100_000, n_vocab=65, dropout=0.35, seq_length=64)


def curve(*losses: tuple[float, float]) -> list[Look]:
    return [Look(100 * (i + 1), train, val) for i, (train, val) in enumerate(losses)]


HEALTHY = curve((2.0, 2.0), (1.6, 1.65), (1.5, 1.58), (1.45, 1.55), (1.44, 1.54))


@pytest.mark.parametrize(
    ("rule", "facts"),
    [
        ("large", replace(SOUND, n_train=100_000, dropout=0.0)),
        ("small", replace(SOUND, n_train=100_000_000)),
        ("validation", replace(SOUND, n_val=2_000)),
        ("vocabulary", replace(SOUND, n_vocab=20_000)),
    ],
)
def test_sizes_that_call_for_advice(rule: str, facts: Facts) -> None:
    """Exactly the rule that is meant speaks, and not for sound sizes."""
    assert [a.rule for a in at_start(facts)] == [rule]
    assert at_start(SOUND) == []


@pytest.mark.parametrize(
    ("rule", "looks"),
    [
        ("overfitting", curve((2.0, 2.0), (1.5, 1.6), (1.3, 1.58), (1.1, 1.63), (0.9, 1.75))),
        ("memorising", curve((2.0, 2.0), (1.6, 1.7), (1.4, 1.59), (1.35, 1.54), (1.33, 1.53))),
        ("underfitting", curve((2.3, 2.3), (2.0, 2.0), (1.95, 1.95), (1.94, 1.94), (1.935, 1.935))),
        ("falling", curve((2.4, 2.4), (2.1, 2.2), (1.9, 2.0), (1.7, 1.8))),
        ("unstable", curve((2.0, 2.0), (1.6, 1.65), (2.4, 2.46), (1.5, 1.58), (1.45, 1.55), (1.44, 1.54))),
    ],
)
def test_curves_that_call_for_advice(rule: str, looks: list[Look]) -> None:
    """Exactly the rule that is meant speaks, with the numbers it rests on, and not for a healthy curve."""
    (said,) = of_curve(SOUND, looks)
    assert said.rule == rule
    assert any(f"{value:.3f}" in said.text for look in looks for value in (look.val_loss, look.train_loss)) or (
        rule in ("falling", "unstable")
    )
    assert any(word in said.text for word in ("try", "will pay", "may bring"))
    assert of_curve(SOUND, HEALTHY) == []


def test_a_network_that_goes_astray() -> None:
    """A whole part far above the looks' samples calls for advice, with both numbers; a sample's own error does not."""
    (said,) = of_whole(1.523, 1.943)
    assert said.rule == "unstable_state"
    assert "1.943" in said.text
    assert "1.523" in said.text
    assert "try" in said.text
    assert of_whole(1.523, 1.56) == []
    assert of_whole(1.523, 1.4) == []


def test_dropout_answers_the_large_network() -> None:
    """Many parameters a character are no matter where enough is dropped."""
    large = replace(SOUND, n_train=100_000)
    assert [a.rule for a in at_start(replace(large, dropout=0.1))] == ["large"]
    assert at_start(large) == []


def test_no_looks_no_advice() -> None:
    """Before the first look there is nothing to say."""
    assert of_curve(SOUND, []) == []
