"""The block: how every device advances many texts by K characters, and the protocol that all steppers share.

A stepper owns a table of slots, one hidden state each. `run` takes a Block, which is arrays and nothing else, and
advances its rows; a prompt is forced_ids ids, decoding is -1, and a row passes from one to the other inside a block. A
stepper knows no prompt, no request and no clock.

The promise of every stepper: the result of a row depends on that row alone, bitwise, whatever B, K, the slot, or the
other rows are. `numerics` names the arithmetic; two steppers with the same name agree bitwise, and a state made by
one arithmetic is not continued by another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE = -1
"""In `forced_ids`: feed what was just sampled."""


@dataclass(frozen=True, slots=True)
class Block:
    """B rows to be advanced by up to K steps.

    At step k a row is fed `forced_ids[k]` (or, where that is SAMPLE, the id that step k-1 produced) and produces the id that
    follows. `forced_ids[0]` is never SAMPLE: it is the row's next_input id.
    """

    slots: NDArray[np.int32]  # (B,) rows of the state table, all different
    steps: NDArray[np.int32]  # (B,) 1..K: after so many steps the row stands still
    forced_ids: NDArray[np.int32]  # (K, B) an id to feed, or SAMPLE
    random_values: NDArray[np.float64]  # (K, B) in [0, 1): the random number for the id that step k produces
    temperature: NDArray[np.float64]  # (B,) 0 is greedy
    top_k: NDArray[np.int32]  # (B,) 0 is off
    top_p: NDArray[np.float64]  # (B,) 1 is off
    min_p: NDArray[np.float64]  # (B,) 0 is off


@dataclass(frozen=True, slots=True)
class BlockResult:
    """What a block produced. Entries at k >= steps[b] mean nothing.

    `ids[k]` is the id that follows step k: `forced_ids[k + 1]` where that is not SAMPLE, else the sampled one.
    `logprobs[k]` is its natural log-probability at temperature 1 with no filter; NaN where the id was forced_ids.
    """

    ids: NDArray[np.int32]  # (K, B)
    logprobs: NDArray[np.float32]  # (K, B)


class Stepper(Protocol):
    """Advances a table of slots; one thread at a time calls it."""

    name: str
    """Which stepper this is, for people: "reference", "cpu-f32", ..."""
    numerics: str
    """The arithmetic. Equal names agree bitwise; see the module docstring."""
    n_slots: int

    def run(self, block: Block) -> BlockResult:
        """Advance the block's rows in place."""
        ...

    def read(self, slot: int) -> NDArray[np.floating]:
        """A copy of a slot's state, (S, L, H)."""
        ...

    def write(self, slot: int, state: NDArray[np.floating] | None) -> None:
        """Replace a slot's state; None is the zero state, that of a text not begun."""
        ...
