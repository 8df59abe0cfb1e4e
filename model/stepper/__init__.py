"""Steppers: they advance the texts of a batch by K characters at a time. The Block, the Protocol and every device.

What belongs here runs a trained network forward, bit for bit the same in any batch. Training, text and requests do not.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from model.network.penalties import LogitBias
from model.network.sampling import SamplingBatch
from model.structured_outputs.masks import ConstraintResult, Constraints

SAMPLE = -1
"""In `Block.forced_ids`: feed the id that the step before produced."""
NO_SCORE = -1
"""In `Block.score_ids`: report the log-probability of the id that is sampled."""


@dataclass(frozen=True, slots=True)
class Block:
    """B rows to be advanced by up to K steps.

    At step k a row is fed `forced_ids[k]`, or the id that step k-1 produced where that is SAMPLE, and produces the id
    that follows. A prompt is forced ids, decoding is SAMPLE, and a row passes from one to the other inside a block.
    `forced_ids[0]` is never SAMPLE: it is the row's `next_input`. The ids that are sampled in the block join the row's
    window; forced ids are in it from the start.

    A row's last step samples always, also where its prompt goes on in the next block and nobody uses the id. So a row
    has a constraint only in blocks that read its prompt to the end.
    """

    slots: NDArray[np.int32]  # (B,) rows of the state table, all different
    steps: NDArray[np.int32]  # (B,) 1..K: the row advances so many steps
    forced_ids: NDArray[np.int32]  # (K, B) an id to feed, or SAMPLE
    random_values: NDArray[np.float64]  # (K, B) in [0, 1): the random number for the id that step k produces
    sampling: SamplingBatch  # (B,) the sampling parameters of each row
    score_ids: NDArray[np.int32] | None = None  # (K, B) ids whose log-probabilities are reported, or NO_SCORE
    windows: NDArray[np.int32] | None = None  # (B, W) of the penalties, before the first sampled id: penalties.py
    logit_bias: LogitBias | None = None  # added to the logits before sampling
    constraints: Constraints | None = None  # what the sampled ids of rows must be
    least_steps: int = 1  # an Interrupt ends the run after so many steps at the earliest


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a block produced. A row has advanced by `steps[b]`, and entries at k >= steps[b] mean nothing.

    `ids[k]` is the id that follows step k: `forced_ids[k + 1]` where that is not SAMPLE, else the sampled one.
    `logprobs[k]` is a natural log-probability at temperature 1 with no filter: of `score_ids[k]` where that is given,
    else of the id that was sampled; NaN where the id was forced.

    A row advances by fewer steps than requested if its constraint lets nothing follow, or if the run was interrupted.
    """

    steps: NDArray[np.int32]  # (B,) at most those of the block, and at least 1
    steps_run: int  # the most that were computed for a row: a row is computed on when its constraint has stopped it
    ids: NDArray[np.int32]  # (K, B)
    logprobs: NDArray[np.float32]  # (K, B)
    constraints: ConstraintResult | None = None  # if the block has constraints


class Interrupt:
    """Ends runs of a stepper early, at the end of a step; another thread may set it while the stepper runs.

    It changes no bit of a text: a row goes on in the next block where this one has ended.
    """

    def __init__(self) -> None:
        """Create one that is not set."""
        self._is_set = ctypes.c_int32(0)

    @property
    def address(self) -> int:
        """The address of an int32 that is not 0 while it is set, for native code."""
        return ctypes.addressof(self._is_set)

    def __bool__(self) -> bool:
        """Whether it is set."""
        return self._is_set.value != 0

    def set(self) -> None:
        """End the present run, and each later one after its least steps, until `clear`."""
        self._is_set.value = 1

    def clear(self) -> None:
        """End no run any more."""
        self._is_set.value = 0


class StepperError(Exception):
    """Raised when the device of a stepper fails.

    Attributes:
        is_final: Whether nothing more can be computed in this process: the process has to be started again.
    """

    def __init__(self, message: str, *, is_final: bool = False) -> None:
        """Keep whether the failure is final."""
        super().__init__(message)
        self.is_final = is_final


def as_state(state: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A contiguous float32 state for a native stepper's table.

    Raises:
        ValueError: The state is not finite float32 of this shape.
    """
    if state.dtype != np.float32 or state.shape != shape or not np.isfinite(state).all():
        raise ValueError(f"state: got {state.dtype} {state.shape}, expected finite float32 {shape}")
    return np.ascontiguousarray(state, dtype=np.float32)


class Stepper(Protocol):
    """A table of slots, one hidden state each, and the network that advances them. One thread at a time calls it.

    Batch invariance is the promise of every stepper: the result of a row depends on that row alone, bit for bit,
    whatever B, K, the slot and the other rows are.
    """

    name: str
    """Which stepper this is, for logs and reports: "reference", "cpu-f32", ..."""
    numerics: str
    """The arithmetic. Steppers with equal names agree bit for bit; a state is only continued in the same arithmetic."""
    n_slots: int

    def run(self, block: Block) -> BlockResult:
        """Advance the block's rows in place."""
        ...

    def read(self, slot: int) -> NDArray[np.floating]:
        """Copy a slot's state, (S, L, H)."""
        ...

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        """Replace a slot's state; None is the zero state, that of a text that has not begun."""
        ...


class TextScoring(Protocol):
    """Texts that are being read. One thread at a time calls it, the one that calls the stepper."""

    def run(self, steps: int, n_cores: int = 0) -> int:
        """Read on for about so many steps of one text each; returns how many it were, 0 at the end.

        Args:
            steps: About how many.
            n_cores: The most cores that are used; 0: any number. They change no bit of a result.
        """
        ...

    def close(self) -> None:
        """Free what it holds. Idempotent."""
        ...


@runtime_checkable
class ScoresTexts(Protocol):
    """What a stepper has if it can read many texts side by side without a slot for each."""

    def begin_scoring(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], logprobs: NDArray[np.float32]
    ) -> TextScoring:
        """Begin to read texts, each from the zero state. No slot changes.

        The log-probabilities are those that a block reports in `score_ids`, bit for bit. Texts that lie side by side
        and begin alike share the work.

        Args:
            ids: (N,) of all texts, one after the other. Of each, all but the last id are fed.
            starts: (n + 1,) where each text begins, and N; a text has two ids at least.
            logprobs: (N - n,) filled with the natural log-probability of each id but the first of its text.
        """
        ...


@runtime_checkable
class CpuBound(Protocol):
    """A stepper whose runs take this machine's cores, which steppers share."""

    def cores_for(self, block: Block) -> int:
        """Return how many cores a run of the block would use."""
        ...

    def run(self, block: Block, n_cores: int = 0, interrupt: Interrupt | None = None) -> BlockResult:
        """Run a block.

        Args:
            block: The rows.
            n_cores: The most that the run uses; 0: any number. It changes no bit of the result.
            interrupt: While it is set, the run ends with the present step or the next one, but not before the block's
                least steps. Rows may be at different steps then.
        """
        ...
