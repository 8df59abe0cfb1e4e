"""The automata of a block's rows, and the masks in torch: what the reference stepper and the plain loop use.

A row's automaton and its budget change with each sampled id, and with no forced one. The masks come after bias and
penalties and before the temperature and the filters, so that top_k, top_p and the others choose among the ids that are
allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.structured_outputs.automaton import NO_CONTINUATION, NO_STATE, Automaton

NO_AUTOMATON = -1
"""In `Constraints.rows`: the row is not constrained."""


class RowConstraint(NamedTuple):
    """The constraint of one row."""

    automaton: Automaton
    state: int  # before the next sampled id
    budget: int  # ids that may be sampled at most


@dataclass(frozen=True, slots=True)
class Constraints:
    """The constraints of a block's rows."""

    automata: tuple[Automaton, ...]
    rows: NDArray[np.int32]  # (B,) the index of the row's automaton, or NO_AUTOMATON
    states: NDArray[np.int32]  # (B,) before the first sampled id
    budgets: NDArray[np.int32]  # (B,) ids that may be sampled at most: an end is reached within them

    @classmethod
    def of(cls, rows: Sequence[RowConstraint | None]) -> Constraints | None:
        """Put the constraints of each row into arrays; None if there are none."""
        if not any(rows):
            return None
        automata: dict[Automaton, int] = {}
        indices = [NO_AUTOMATON if row is None else automata.setdefault(row.automaton, len(automata)) for row in rows]
        return cls(
            tuple(automata),
            np.array(indices, dtype=np.int32),
            np.array([0 if row is None else row.state for row in rows], dtype=np.int32),
            np.array([0 if row is None else row.budget for row in rows], dtype=np.int32),
        )


@dataclass(frozen=True, slots=True)
class ConstraintResult:
    """What the constraints did in a block."""

    states: NDArray[np.int32]  # (B,) after the block
    logprobs: NDArray[np.float32]  # (K, B) of the ids that were allowed together, at temperature 1; 0 without a mask


class MaskTables:
    """The constraints of a block's rows in torch, one step at a time. Rows without one allow every id."""

    def __init__(self, constraints: Constraints, n_rows: int, device: torch.device | str = "cpu") -> None:
        """Copy the tables to a device, for n_rows rows, of which those past the block's own have no constraint."""
        automata = constraints.automata
        sizes = [len(a.distances) for a in automata]
        first = np.concatenate([[1], 1 + np.cumsum(sizes)])[:-1]  # state 0 stands for rows without a constraint
        table = np.full((1 + sum(sizes), max(a.next_states.shape[1] for a in automata)), NO_STATE, dtype=np.int64)
        table[0] = 0
        distances, continuations = np.zeros(len(table), np.int64), np.zeros(len(table), np.int64)
        classes = np.zeros((1 + len(automata), len(automata[0].classes)), dtype=np.int64)
        for i, (a, at, size) in enumerate(zip(automata, first, sizes, strict=True)):
            moved = np.where(a.next_states == NO_STATE, NO_STATE, a.next_states + at)
            table[at : at + size, : moved.shape[1]] = moved
            distances[at : at + size], continuations[at : at + size] = a.distances, a.continuations
            classes[1 + i] = a.classes
        n = len(constraints.rows)
        which, states, budgets = np.zeros(n_rows, np.int64), np.zeros(n_rows, np.int64), np.ones(n_rows, np.int64)
        is_row = constraints.rows != NO_AUTOMATON
        which[:n] = constraints.rows + 1
        starts = np.concatenate([[0], first])[which[:n]]
        states[:n] = np.where(is_row, constraints.states + starts, 0)
        budgets[:n] = np.where(is_row, constraints.budgets, NO_CONTINUATION)
        budgets[n:] = NO_CONTINUATION
        self._table, self._distances, self._continuations, self._classes, self._states, self._budgets, self._starts = (
            torch.from_numpy(np.ascontiguousarray(values)).to(device)
            for values in (table, distances, continuations, classes[which], states, budgets, _padded(starts, n_rows))
        )
        self._n = n

    def mask(self, logits: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The ids that may follow.

        Args:
            logits: (B, V) of the rows, as the network computed them.
            rows: Which rows these are.

        Returns:
            Whether an id is allowed (B, V), and the log-probability (B,) of those ids together, at temperature 1.
            A row of which nothing may follow allows all.
        """
        following = self._table[self._states[rows]].gather(1, self._classes[rows])  # (B, V)
        allowed = (following != NO_STATE) & (self._distances[following.clamp(min=0)] < self._budgets[rows, None])
        allowed |= ~allowed.any(dim=1, keepdim=True)
        logits = logits.double()
        kept = logits.masked_fill(~allowed, -torch.inf).logsumexp(dim=1)
        return allowed, kept - logits.logsumexp(dim=1)

    def advance(self, ids: Tensor, is_sampled: Tensor) -> Tensor:
        """Advance the rows that have sampled an id (B,); return which of them (B,) nothing may follow any more."""
        classes = self._classes.gather(1, ids[:, None])
        following = self._table[self._states].gather(1, classes)[:, 0]
        moves = is_sampled & (following != NO_STATE)
        self._states = torch.where(moves, following, self._states)
        is_constrained = self._states > 0
        self._budgets = torch.where(moves & is_constrained, self._budgets - 1, self._budgets)
        return is_sampled & is_constrained & (self._continuations[self._states] > self._budgets)

    def states(self) -> NDArray[np.int32]:
        """The states (B,) of the block's own rows, as the automata number them."""
        return (self._states - self._starts)[: self._n].cpu().numpy().astype(np.int32)


def _padded(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    whole = np.zeros(size, dtype=np.int64)
    whole[: len(values)] = values
    return whole
