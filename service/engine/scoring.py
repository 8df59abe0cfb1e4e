"""Texts that are only read, side by side and without slots, between the blocks of those that are generated."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from model.stepper import ScoresTexts, StepperError
from model.stepper.scoring import PackedScoring, PackedTexts
from service.errors import ServiceError

log = logging.getLogger(__name__)

BUSY_SHARE = 0.25
"""Of the time, how much may be spent on reading texts that are only scored or inspected while others are generated."""
_MAX_OPEN = 4
"""Jobs that take turns; each has memory for its rows. Later ones wait."""
_FIRST_GUESS = 50_000.0  # steps per second, until a part has been measured


class ScoringJob:
    """The texts of one request. The request's thread waits for it and closes it; the engine's thread reads."""

    def __init__(self, texts: PackedTexts) -> None:
        """Create a job that has not begun.

        Args:
            texts: What to read.
        """
        self.texts = texts
        self.closed = False
        self._scoring: PackedScoring | None = None
        self._logprobs: NDArray[np.float32] | None = None
        self._error: ServiceError | None = None
        self._finished = threading.Event()

    def wait(self, timeout_s: float) -> NDArray[np.float32] | None:
        """Return the log-probabilities in the order of reading, or None if they are not there in time.

        Raises:
            ServiceError: The texts cannot be read.
        """
        if not self._finished.wait(timeout_s):
            return None
        if self._error is not None:
            raise self._error
        return self._logprobs

    def close(self) -> None:
        """Leave: the engine does not read on. Idempotent."""
        self.closed = True

    def run(self, stepper: ScoresTexts, steps: int, n_cores: int) -> int:
        """Read on for about so many steps of one text each; returns how many it were, fewer at the end."""
        if self._scoring is None:
            self._scoring = PackedScoring(stepper, self.texts)
        return self._scoring.run(steps, n_cores)

    def finish(self, error: ServiceError | None = None) -> None:
        """End it, because all is read, nobody waits or there is an error. The engine's thread calls it."""
        if self._scoring is not None:
            self._scoring.close()
            self._logprobs = self._scoring.logprobs
        self._error = error
        self._finished.set()


class ScoringQueue:
    """The jobs of an engine. Any thread adds, the engine's thread does the rest."""

    def __init__(self, stepper: object) -> None:
        """Create an empty queue.

        Args:
            stepper: The engine's.
        """
        self._stepper = stepper if isinstance(stepper, ScoresTexts) else None
        self._jobs: deque[ScoringJob] = deque()
        self._steps_per_s = _FIRST_GUESS
        self._turn = 0

    @property
    def is_supported(self) -> bool:
        """Whether the stepper can read texts without slots."""
        return self._stepper is not None

    def __len__(self) -> int:
        """Return the number of jobs that have not ended."""
        return len(self._jobs)

    def add(self, job: ScoringJob) -> None:
        """Append a job."""
        self._jobs.append(job)

    def run(self, seconds: float, n_cores: int = 0) -> int:
        """Read on for about so many seconds; returns how many characters were scored of the job that ended by it.

        Args:
            seconds: About how long.
            n_cores: The most cores that are used; 0: any number.

        Raises:
            StepperError: The device failed.
        """
        assert self._stepper is not None
        turn = self._turn = (self._turn + 1) % min(_MAX_OPEN, len(self._jobs))
        job = self._jobs[turn]
        steps = max(1, int(self._steps_per_s * seconds))
        error, is_finished, started = None, True, time.monotonic()
        try:
            if not job.closed:
                made = job.run(self._stepper, steps, n_cores)
                is_finished = made < steps
                if made:
                    rate = made / max(time.monotonic() - started, 1e-6)
                    self._steps_per_s += 0.3 * (rate - self._steps_per_s)
        except StepperError:
            raise
        except Exception as e:  # a bug, or no memory: ends this job alone
            log.exception("the engine could not score a list of texts; its request ends with an error")
            error = ServiceError("internal error; the log of the service has the details")
            error.__cause__ = e
        if not is_finished:
            return 0
        self._jobs.remove(job)
        job.finish(error)
        return job.texts.n_scored if error is None and not job.closed else 0

    def end(self, error: ServiceError) -> None:
        """End all jobs with an error."""
        while self._jobs:
            self._jobs.popleft().finish(error)

    def close(self, error: ServiceError) -> None:
        """End all jobs, and let go of the stepper."""
        self._stepper = None
        self.end(error)
