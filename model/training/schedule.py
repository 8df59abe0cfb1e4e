"""The budget of a run, and the learning rate over it: a schedule that ends when the budget does.

A budget in steps or epochs is a number of steps. One in minutes is converted to steps after CALIBRATION of it, by the
speed so far, and corrected at each validation, and between them where the machine has become so slow that the run would
end late: only the remaining steps are stretched or shortened, so the learning rate never jumps. Each such decision is
recorded. A resumed run applies the recorded decisions before it measures its own speed, so it takes exactly the steps
of the run that was not interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from model.config import TrainConfig

CALIBRATION = 0.05
"""The part of a budget in minutes after which it is converted to steps."""

_LATE = 0.03  # of the budget in minutes: a run that seems to end later than this is corrected
_FINAL = 0.1  # of the budget in minutes: what is kept at most for the measurement after the last step
_MEASURED = 0.01  # of the budget in minutes: the time over which a speed is measured before a run is called late
_SMALLEST_FRACTION = 1e-9  # above the rounding error of a fraction, far below the fraction of one step


@dataclass(frozen=True, slots=True)
class BudgetDecision:
    """From `step` on, when `fraction` of the budget was spent, the run is to end after `total_steps`."""

    step: int
    fraction: float
    total_steps: int


@dataclass(slots=True)
class Budget:
    """The budget of a run. `decisions` may lie in the future: those of the interrupted run that is resumed."""

    config: TrainConfig
    n_train: int  # characters of the training part
    decisions: list[BudgetDecision] = field(default_factory=list)
    _n_applied: int = 0  # decisions in force

    def __post_init__(self) -> None:
        """Decide a budget in steps or epochs at once."""
        c = self.config
        steps = c.steps or math.ceil(c.epochs * self.n_train / (c.batch_size * c.seq_length))
        if steps and not self.decisions:
            self.decisions.append(BudgetDecision(0, 0.0, steps))
        self.apply_decisions(0)

    @property
    def is_in_minutes(self) -> bool:
        """Whether the budget is a time: neither steps nor epochs were given."""
        return not (self.config.steps or self.config.epochs)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 while that is not decided."""
        return self.decisions[self._n_applied - 1].total_steps if self._n_applied else 0

    def apply_decisions(self, step: int) -> bool:
        """Apply the recorded decisions up to a step.

        Returns:
            Whether a decision was recorded for this very step.
        """
        while self._n_applied < len(self.decisions) and self.decisions[self._n_applied].step <= step:
            self._n_applied += 1
        return bool(self._n_applied) and self.decisions[self._n_applied - 1].step == step

    def fraction_spent(self, step: int, elapsed_s: float) -> float:
        """Return the fraction of the budget that is spent after `step` steps, from 0 to 1."""
        if not self._n_applied:
            return min(1.0, elapsed_s / (self.config.minutes * 60))
        d = self.decisions[self._n_applied - 1]
        if step >= d.total_steps:
            return 1.0
        return min(1.0, d.fraction + (1 - d.fraction) * (step - d.step) / max(1, d.total_steps - d.step))

    def is_late(self, step: int, elapsed_s: float, since_s: float, step_s: float, final_s: float = 0.0) -> bool:
        """Whether a budget in minutes would be exceeded at the speed since the last decision.

        Args:
            step: Steps so far.
            elapsed_s: Seconds of the run so far.
            since_s: The time over which the speed was measured.
            step_s: Seconds of a step in that time.
            final_s: Seconds that the measurement after the last step will take.
        """
        if not self.is_in_minutes or not self._n_applied:
            return False
        budget_s = self.config.minutes * 60
        end_s = elapsed_s + (self.total_steps - step) * step_s + min(final_s, _FINAL * budget_s)
        return since_s >= _MEASURED * budget_s and end_s > (1 + _LATE) * budget_s

    def decide(self, step: int, elapsed_s: float, step_s: float, final_s: float = 0.0) -> bool:
        """Convert what is left of a budget in minutes to steps of `step_s` seconds, before `final_s` for measuring.

        Returns:
            Whether a decision was added.
        """
        if not self.is_in_minutes or self.apply_decisions(step) or (self._n_applied and step >= self.total_steps):
            return False
        if self._n_applied < len(self.decisions):  # a resumed run: what follows is decided
            return False
        budget_s = self.config.minutes * 60
        remaining_s = budget_s - elapsed_s - min(final_s, _FINAL * budget_s)
        total_steps = step + max(1, round(remaining_s / step_s))
        self.decisions.append(BudgetDecision(step, self.fraction_spent(step, elapsed_s), total_steps))
        return self.apply_decisions(step)

    def is_validation_due(self, step: int) -> bool:
        """Whether a validation follows this step: `validations` in all, evenly spaced, the last one at the end."""
        if not self._n_applied:
            return False
        n = self.config.validations

        def validations_until(step: int) -> int:
            return math.floor(n * self.fraction_spent(step, 0.0) + _SMALLEST_FRACTION)

        return validations_until(step) > validations_until(step - 1)


def learning_rate(config: TrainConfig, fraction: float) -> float:
    """Return the learning rate when `fraction` of the budget is spent: a linear warmup, then the decay to zero."""
    if fraction < config.warmup:
        return config.lr * (fraction / config.warmup)
    remaining = 1 - (fraction - config.warmup) / (1 - config.warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * remaining))
    return config.lr * remaining if config.schedule == "linear" else config.lr
