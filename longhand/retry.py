"""What is sent again, when, and how long. Both clients obey this.

| failure | sent again |
|---|---|
| no connection | always |
| a connection was lost | if to repeat the request is harmless, or for a stream, if it can be resumed |
| 408, 409, 425, 429, 503 with Retry-After | always, after that time: the request was refused, not done |
| 502, 504 with Retry-After; 502, 503, 504 of a gateway, without an error of this API | if a repetition is harmless |
| everything else | never |

POST /generate and POST /retrain are harmless to repeat because the client sends an Idempotency-Key.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from longhand.errors import APIError, ConnectionFailed, LonghandError

_REFUSED = frozenset({408, 409, 425, 429, 503})
_GATEWAY_FAILED = frozenset({502, 503, 504})
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long failures are tolerated.

    Attributes:
        for_s: Seconds from the first of several failures in a row to the last attempt. 0: nothing is repeated.
    """

    for_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.for_s < float("inf"):
            raise ValueError(f"retry_for_s: got {self.for_s!r}, expected a number of seconds from 0")

    def attempts(self) -> Attempts:
        """Begin to count."""
        return Attempts(self)


class Attempts:
    """The failures in a row of one request, or of one stream since its last text."""

    def __init__(self, policy: RetryPolicy) -> None:
        """Start with no failure."""
        self._policy = policy
        self._failures = 0
        self._failing_since = 0.0
        self._may_be_done = False

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0

    def delay_after(self, error: LonghandError, *, is_repeatable: bool) -> float:
        """Return how many seconds to wait before the next attempt.

        Args:
            error: How the attempt failed.
            is_repeatable: Whether it is harmless if the server does the request twice.

        Raises:
            LonghandError: The error itself, if there is to be no further attempt.
        """
        now = time.monotonic()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        error.attempts = self._failures
        error.may_be_done = self._may_be_done
        self._may_be_done |= not _is_refusal(error)
        if not _is_retryable(error, is_repeatable=is_repeatable):
            raise error
        requested = error.retry_after_s if isinstance(error, APIError) else None
        delay = max(requested or 0.0, _backoff(self._failures))
        if now + delay - self._failing_since > self._policy.for_s:
            waited = now - self._failing_since
            error.add_note(
                f"gave up after {self._failures} attempts in {waited:.1f} s; the next would be {delay:.1f} s later"
            )
            raise error
        return delay


def _is_retryable(error: LonghandError, *, is_repeatable: bool) -> bool:
    if isinstance(error, ConnectionFailed):
        return is_repeatable or not error.was_sent
    if not isinstance(error, APIError):
        return False
    if _is_refusal(error):
        return True
    is_of_gateway = error.status in _GATEWAY_FAILED and (error.retry_after_s is not None or not error.code)
    return is_of_gateway and is_repeatable


def _is_refusal(error: LonghandError) -> bool:
    """Whether the server has not done the request, and may do it later."""
    if isinstance(error, ConnectionFailed):
        return not error.was_sent
    return isinstance(error, APIError) and error.retry_after_s is not None and error.status in _REFUSED


def _backoff(failures: int) -> float:
    """Exponential, and random, so that the clients of a server that comes back do not all come at once."""
    delay: float = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures - 1, 20))
    return delay * random.uniform(0.5, 1.0)
