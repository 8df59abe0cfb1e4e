"""The budget of a run, and the learning rate over it: a schedule that ends when the budget does.

A budget in steps or epochs is a number of steps. One in minutes is converted to steps after CALIBRATION of it, by the
speed so far, and corrected at each validation: only the remaining steps are stretched or shortened, so the learning
rate never jumps. Each such decision is recorded. A resumed run applies the recorded decisions before it measures its
own speed, so it takes exactly the steps of the run that was not interrupted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from model.config import TrainConfig

CALIBRATION = 0.05
"""The part of a budget in minutes after which it is converted to steps."""

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

    def decide(self, step: int, elapsed_s: float, step_s: float) -> bool:
        """Convert what is left of a budget in minutes to steps of `step_s` seconds.

        Returns:
            Whether a decision was added.
        """
        if not self.is_in_minutes or self.apply_decisions(step) or (self._n_applied and step >= self.total_steps):
            return False
        remaining_s = self.config.minutes * 60 - elapsed_s
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
