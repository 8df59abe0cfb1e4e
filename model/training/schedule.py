"""How long a run is, and the learning rate on the way: a schedule that ends when the budget does.

A budget in steps or epochs is a number of steps. One in minutes becomes that after CALIBRATION of it, by the speed seen
so far, and is corrected at each look at the validation part: only what is still to come is stretched or shortened, so
the rate never jumps. Every such decision is kept in a list; a resumed run reads the list before it measures anything,
so it takes the very steps that the run that was not killed took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from model.config import TrainConfig

CALIBRATION = 0.05
_SMALLEST_STEP = 1e-9  # of the whole budget: below the rounding of `done`, far below a real step


@dataclass(frozen=True, slots=True)
class Decision:
    """From `step` on, when `done` of the budget was spent, the run is to end after `total` steps."""

    step: int
    done: float
    total: int


@dataclass(slots=True)
class Budget:
    """What is left of a run. `decisions` may reach into the future: those of a run that was killed."""

    config: TrainConfig
    n_train: int  # characters of the training part
    decisions: list[Decision] = field(default_factory=list)
    _now: int = 0  # how many decisions are in force

    def __post_init__(self) -> None:
        c = self.config
        steps = c.steps or math.ceil(c.epochs * self.n_train / (c.batch_size * c.seq_length))
        if steps and not self.decisions:
            self.decisions.append(Decision(0, 0.0, steps))
        self.advance(0)

    @property
    def in_minutes(self) -> bool:
        return not (self.config.steps or self.config.epochs)

    @property
    def total(self) -> int:
        """Steps of the whole run; 0 while that is not known."""
        return self.decisions[self._now - 1].total if self._now else 0

    def advance(self, step: int) -> bool:
        """Take over what was decided up to this step; says whether anything was decided for the step itself."""
        while self._now < len(self.decisions) and self.decisions[self._now].step <= step:
            self._now += 1
        return bool(self._now) and self.decisions[self._now - 1].step == step

    def done(self, step: int, elapsed_s: float) -> float:
        """The part of the budget that is spent after `step` steps, 0..1."""
        if not self._now:
            return min(1.0, elapsed_s / (self.config.minutes * 60))
        d = self.decisions[self._now - 1]
        if step >= d.total:
            return 1.0
        return min(1.0, d.done + (1 - d.done) * (step - d.step) / max(1, d.total - d.step))

    def decide(self, step: int, elapsed_s: float, step_s: float) -> bool:
        """Size what is left of a budget in minutes, steps of `step_s` seconds; says whether the list has grown."""
        if not self.in_minutes or self.advance(step) or (self._now and step >= self.total):
            return False
        left_s = self.config.minutes * 60 - elapsed_s
        total = step + max(1, round(left_s / step_s))
        self.decisions.append(Decision(step, self.done(step, elapsed_s), total))
        return self.advance(step)

    def due(self, step: int) -> bool:
        """Whether this step is followed by a look: `validations` in all, evenly spaced, the last at the end."""
        if not self._now:
            return False
        n = self.config.validations

        def looks(at: int) -> int:
            return math.floor(n * self.done(at, 0.0) + _SMALLEST_STEP)

        return looks(step) > looks(step - 1)


def learning_rate(config: TrainConfig, done: float) -> float:
    """The rate when `done` of the budget is spent: a linear rise, then the schedule's fall to zero."""
    if done < config.warmup:
        return config.lr * (done / config.warmup)
    left = 1 - (done - config.warmup) / (1 - config.warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 - math.cos(math.pi * left))
    return config.lr * left if config.schedule == "linear" else config.lr
