"""One text in the engine: the request, which never changes, and its progress, which the engine's thread changes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from model.network.penalties import Window, advance_window, new_window
from model.network.sampling import SamplingParams
from model.structured_outputs.automaton import UNBOUNDED, Automaton
from model.structured_outputs.masks import RowConstraint
from service.engine.stop_strings import StopScanner
from service.engine.stream import FinishReason, Stream

StateArray = NDArray[np.floating]
_NO_TEXT: Window = np.empty(0, dtype=np.int32)
_NO_LOGPROBS: NDArray[np.float32] = np.empty(0, dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class SequenceRequest:
    """What the engine generates.

    The text begins with `state`, which has consumed everything before `feed[0]`, and continues with `feed`. Then up to
    `max_chars` characters are generated.
    """

    feed: NDArray[np.int32]  # (n,) n >= 1: the next_input id, then the ids of the prompt
    start_position: int  # characters of the text up to and including feed[0]
    max_chars: int
    sampling: SamplingParams
    seed: int
    state: StateArray | None = None  # (S, L, H); None: the zero state of a new text
    stop: tuple[str, ...] = ()
    min_chars: int = 0  # no stop string is matched in so many generated characters
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # id -> what is added to its logit
    window: Window = field(default_factory=lambda: _NO_TEXT)  # the text before the first generated character, as codes
    snapshot_every_s: float | None = None  # attach the state to a chunk this often; None: never
    deadline: float | None = None  # time.monotonic() at which the text ends
    captures: Mapping[int, str] = field(default_factory=dict)  # position -> key of a StateCapture to put on the stream
    is_scored: bool = False  # report the log-probability of each id of the prompt; nothing is generated
    reused_chars: int = 0  # characters of the prompt that `state` has consumed, for metrics
    end_id: int | None = None  # the text ends with the first generated one of these; its end has no state
    is_part: bool = False  # of a longer text: metrics do not count it as a text of its own
    automaton: Automaton | None = None  # what the generated text must match wholly, from its first character on
    budget: int = 0  # of the automaton: the characters within which the text must end, at least max_chars


@dataclass(slots=True, eq=False)
class ReplayPoint:
    """A state from which the text can be computed again, kept for texts with stop strings.

    A stop string may be complete only when the state is already past it. The state at the end of the sent text is then
    found again by replaying from here; at this point no text was held back.
    """

    state: StateArray | None  # (S, L, H); None: the zero state
    position: int
    ids: list[int]  # the next_input at this point, then every id that followed

    def ids_until(self, position: int) -> tuple[list[int], int]:
        """The ids to feed to reach a position, and the next_input there."""
        steps = position - self.position
        return self.ids[:steps], self.ids[steps]


class Interval:
    """A timer that is due again and again, `seconds` apart; never if that is None."""

    def __init__(self, seconds: float | None, start: float) -> None:
        """Begin the first interval at `start`, a time.monotonic()."""
        self._seconds = seconds
        self._due_at = start + (seconds or 0.0)

    def is_due(self, now: float) -> bool:
        """Whether the interval has passed; if so, the next one begins."""
        if self._seconds is None or now < self._due_at:
            return False
        self._due_at = now + self._seconds
        return True


class Sequence:
    """The progress of one request. Step k of the next block produces the character at index `position + k`."""

    def __init__(self, request: SequenceRequest, now: float, stream: Stream | None = None) -> None:
        """Start at the request's beginning; `now` is the time of the submission, time.monotonic()."""
        self.request = request
        self.stream = stream or Stream()
        self.scores: list[NDArray[np.float32]] = []  # of each block, if the request is scored
        self.submitted_at = now
        self.last_chunk_at: float | None = None
        self.to_feed = request.feed  # (n,) n >= 1: what the next block feeds before it samples
        self.position = request.start_position  # characters of the text up to and including to_feed[0]
        self._automaton_state, self._budget, self._mask_logprob = 0, request.budget, 0.0
        self._n_generated = 0
        self.remaining = self._bounded(request.max_chars)
        self.follow_reader()
        self.window = new_window(request.sampling, request.window)  # what penalties look at next
        self._stop_scanner = StopScanner(request.stop, request.min_chars)
        self._held_logprobs = _NO_LOGPROBS  # one per character that the scanner holds back
        self._replay_point = self._replay_point_at(request.state) if self._stop_scanner.is_active else None
        self._captures = deque(sorted(request.captures.items()))
        self._snapshots = Interval(request.snapshot_every_s, now)

    @property
    def next_input(self) -> int:
        """The id that the state has not consumed yet."""
        return int(self.to_feed[0])

    @property
    def steps_left(self) -> int:
        """Steps until the last character is generated. That one is not fed: it stays next_input."""
        return len(self.to_feed) - 1 + self.remaining

    @property
    def unread_chars(self) -> int:
        """Characters of the prompt that have not been fed. The last one stays next_input until a step needs it."""
        return len(self.to_feed) - 1

    @property
    def has_output(self) -> bool:
        """Whether a character has been generated."""
        return self._n_generated > 0

    @property
    def mask_bits(self) -> float | None:
        """What the masks removed of the probability of the text so far, in bits; None without an automaton."""
        return None if self.request.automaton is None else -self._mask_logprob / log(2)

    @property
    def finish_reason(self) -> FinishReason:
        """Why a text ends that has no steps left."""
        automaton = self.request.automaton
        if automaton is None or automaton.may_continue(self._automaton_state, self._budget):
            return "length"
        return automaton.finish_reason(self._automaton_state, self._budget)

    @property
    def sent_position(self) -> int:
        """The position after the text that may be sent: without what is held back for a stop string."""
        return self.position - len(self._held_logprobs)

    @property
    def replay_point(self) -> ReplayPoint:
        """Where the text can be replayed from. Only a sequence with stop strings has one."""
        if self._replay_point is None:
            raise ValueError("a sequence without stop strings has no replay point")
        return self._replay_point

    def is_past_deadline(self, now: float) -> bool:
        """Whether the request's time is up."""
        return self.request.deadline is not None and now >= self.request.deadline

    def steps_within(self, limit: int) -> int:
        """The steps of the next block: at most `limit`, and not past the next position to capture."""
        to_capture = self._captures[0][0] - self.position if self._captures else limit
        return min(limit, self.steps_left, to_capture)

    def advance(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Take the ids of a block, (n_steps,), and return those that were generated rather than read."""
        steps, fed = len(ids), len(self.to_feed)
        if self._replay_point is not None:
            self._replay_point.ids.extend(ids.tolist())
        new = ids[fed - 1 :] if steps >= fed else ids[:0]
        self.to_feed = self.to_feed[steps:] if fed > steps else ids[-1:]
        self.position += steps
        self.remaining -= len(new)
        self._n_generated += len(new)
        self.follow_reader()
        self.window = advance_window(self.request.sampling, self.window, new)
        return new

    def follow_reader(self) -> None:
        """Generate as many characters as the reader of the stream needs now."""
        needed = self.stream.needed_chars
        if needed is not None:
            self.remaining = max(0, self._bounded(min(self.request.max_chars, needed) - self._n_generated))

    def constraint(self, steps: int) -> RowConstraint | None:
        """The constraint in a block of so many steps. What a block samples before the prompt is read has none."""
        if self.request.automaton is None or steps < len(self.to_feed):
            return None
        return RowConstraint(self.request.automaton, self._automaton_state, self._budget)

    def advance_automaton(self, state: int, mask_logprobs: list[float]) -> None:
        """Take the automaton's state after a block.

        Args:
            state: The state.
            mask_logprobs: Of each generated character: the log-probability that its mask left.
        """
        self._automaton_state = state
        self._budget -= len(mask_logprobs)
        for logprob in mask_logprobs:  # one after the other: the sum does not depend on the blocks
            self._mask_logprob += logprob
        self.remaining = self._bounded(self.remaining)

    def scan(self, text: str, logprobs: NDArray[np.float32]) -> tuple[str, NDArray[np.float32], bool]:
        """Search generated text for stop strings.

        Args:
            text: The new characters.
            logprobs: One for each.

        Returns:
            The text that may be sent, its log-probabilities, and whether a stop string ended it.
        """
        unsent = np.concatenate([self._held_logprobs, logprobs]) if len(self._held_logprobs) else logprobs
        sendable, is_stopped = self._stop_scanner.feed(text)
        self._held_logprobs = unsent[len(sendable) :]
        return sendable, unsent[: len(sendable)], is_stopped

    def flush(self) -> tuple[str, NDArray[np.float32]]:
        """Return what was held back, when no stop string can come any more."""
        logprobs, self._held_logprobs = self._held_logprobs, _NO_LOGPROBS
        return self._stop_scanner.flush(), logprobs

    @property
    def may_move_replay_point(self) -> bool:
        """Whether there is a replay point and no text is held back, so that it can be moved here."""
        return self._replay_point is not None and not len(self._held_logprobs)

    def move_replay_point(self, state: StateArray) -> None:
        """Replay from the present position, whose state is given, if a stop string comes later."""
        self._replay_point = self._replay_point_at(state)

    def pop_capture(self) -> str | None:
        """The key of the capture that is due at this position, once; None if there is none."""
        if self._captures and self._captures[0][0] == self.position:
            return self._captures.popleft()[1]
        return None

    def snapshot_is_due(self, now: float) -> bool:
        """Whether a snapshot should go with the next chunk. A state that is past the sent text is no snapshot."""
        return not len(self._held_logprobs) and self._snapshots.is_due(now)

    def _bounded(self, chars: int) -> int:
        """How many of so many characters can still be generated at most, in the automaton's state."""
        automaton = self.request.automaton
        if automaton is None:
            return chars
        if not automaton.may_continue(self._automaton_state, self._budget):
            return 0
        longest = int(automaton.longest[self._automaton_state])
        return chars if longest == UNBOUNDED else min(chars, longest)

    def _replay_point_at(self, state: StateArray | None) -> ReplayPoint:
        return ReplayPoint(state, self.position, [self.next_input])
