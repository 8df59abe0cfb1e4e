"""A budget ends in time, and the learning rate ends with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config import TrainConfig
from model.training.schedule import Budget, BudgetDecision, learning_rate

MINUTES = TrainConfig(minutes=1.0, validations=10)


def test_epochs_are_passes_over_the_text() -> None:
    """Two passes: every character twice."""
    config = TrainConfig(epochs=2, batch_size=10, seq_length=50)
    assert Budget(config, 100_000).total_steps == 400


def test_steps_come_before_epochs_and_epochs_before_minutes() -> None:
    """The most exact budget that was given counts."""
    assert Budget(TrainConfig(steps=7, epochs=2, minutes=3), 10**6).total_steps == 7
    assert Budget(TrainConfig(minutes=3), 10**6).total_steps == 0


def test_a_slower_machine_makes_fewer_steps_and_ends_in_time() -> None:
    """At twice the time a step the remaining steps are halved, and the fraction spent does not jump."""
    budget = Budget(MINUTES, 10**6)
    assert budget.decide(30, 3.0, 0.1)
    assert budget.total_steps == 30 + 570
    before = budget.fraction_spent(330, 0)
    assert budget.decide(330, 33.0, 0.2)
    assert budget.total_steps == 330 + 135
    assert budget.fraction_spent(330, 0) == before
    assert budget.fraction_spent(budget.total_steps, 0) == 1.0


@given(cuts=st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 1.0)), max_size=8), n=st.integers(1, 20))
def test_every_validation_is_due_whatever_is_decided(cuts: list[tuple[int, float]], n: int) -> None:
    """The fraction never decreases, ends at one, and `validations` are due, but for those that coincide."""
    budget = Budget(replace(MINUTES, validations=n), 10**6)
    budget.decide(5, 3.0, 0.2)
    step, n_validations, last = 5, 0, budget.fraction_spent(5, 0)
    changes = iter(cuts)
    steps_left, step_s = next(changes, (0, 0.0))
    while step < budget.total_steps:
        step += 1
        fraction = budget.fraction_spent(step, 0)
        assert fraction >= last
        last = fraction
        n_validations += budget.is_validation_due(step)
        steps_left -= 1
        if not steps_left and step < budget.total_steps:
            budget.decide(step, min(59.0, step * 0.2), step_s)
            steps_left, step_s = next(changes, (0, 0.0))
    assert last == 1.0
    assert budget.is_validation_due(budget.total_steps)
    assert 1 <= n_validations <= n


def test_decisions_are_repeated_not_made_again() -> None:
    """A budget with the decisions of a killed run applies each at its step."""
    first = Budget(MINUTES, 10**6)
    first.decide(30, 3.0, 0.1)
    first.decide(330, 33.0, 0.2)
    again = Budget(MINUTES, 10**6, list(first.decisions))
    again.apply_decisions(30)
    assert again.total_steps == 600
    assert not again.decide(330, 50.0, 9.9)
    assert again.total_steps == first.total_steps
    assert again.decisions == first.decisions == [BudgetDecision(30, 0.05, 600), first.decisions[1]]


def test_the_last_measurement_takes_a_tenth_of_the_budget_at_most() -> None:
    """A large validation part leaves a short run its steps."""
    for final_s, steps in ((0.0, 570), (3.0, 540), (300.0, 510)):
        budget = Budget(MINUTES, 10**6)
        assert budget.decide(30, 3.0, 0.1, final_s)
        assert budget.total_steps == 30 + steps


@given(
    speeds=st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.002, 0.2)), max_size=4),
    n=st.integers(1, 20),
    final_s=st.floats(0.0, 5.0),
)
def test_a_machine_that_slows_down_between_validations_ends_in_time(
    speeds: list[tuple[float, float]], n: int, final_s: float
) -> None:
    """Whenever and however often the time of a step changes, up to a hundredfold: at most a tenth late."""
    budget = Budget(replace(MINUTES, validations=n), 10**6)
    changes = sorted(speeds)
    step, elapsed, step_s, since = 0, 0.0, 0.01, (0, 0.0)
    while not budget.total_steps or step < budget.total_steps:
        while changes and elapsed >= changes[0][0]:
            step_s = changes.pop(0)[1]
        step, elapsed = step + 1, elapsed + step_s
        measured_s = elapsed - since[1]
        mean_s = measured_s / (step - since[0])
        is_due = budget.is_validation_due(step) if budget.total_steps else elapsed > 3.0
        is_due = is_due or budget.is_late(step, elapsed, measured_s, mean_s, final_s)
        if is_due and budget.decide(step, elapsed, mean_s, final_s):
            since = (step, elapsed)
    assert elapsed + final_s <= 1.1 * 60


def test_a_resumed_run_decides_nothing_before_what_was_decided() -> None:
    """Where the next decision of the killed run lies ahead, a slower machine adds none before it."""
    first = Budget(MINUTES, 10**6)
    first.decide(30, 3.0, 0.1)
    first.decide(330, 33.0, 0.2)
    again = Budget(MINUTES, 10**6, list(first.decisions))
    again.apply_decisions(30)
    assert again.is_late(100, 40.0, 10.0, 0.5)
    assert not again.decide(100, 40.0, 0.5)
    again.apply_decisions(330)
    assert again.decisions == first.decisions
    assert again.total_steps == first.total_steps


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_ends_at_zero(schedule: str) -> None:
    """It rises to lr in the warm-up, and falls from there to nothing."""
    config = TrainConfig(lr=0.01, warmup=0.1, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, 0.05) == pytest.approx(0.005)
    assert learning_rate(config, 0.1) == pytest.approx(0.01)
    assert learning_rate(config, 0.55) == pytest.approx(0.005)
    assert learning_rate(config, 1.0) == pytest.approx(0)


def test_a_constant_rate_stays() -> None:
    """The constant schedule does not decay."""
    assert learning_rate(TrainConfig(lr=0.01, schedule="constant"), 1.0) == 0.01
