"""What changes logits before sampling: a bias for single ids, and penalties for what the recent text contains.

The order is that of vLLM, and everything comes before the temperature and the filters:

    logit += bias of the id
    if the id occurs in the window:                     logit = logit / r if logit > 0 else logit * r
    logit -= frequency_penalty * (times it was generated within the window)
    logit -= presence_penalty  * (1 if it was generated within the window, else 0)

r is repetition_penalty (Keskar et al., "CTRL", 2019, section 4.1), of prompt and generated text; the other
two are OpenAI's and count generated text only. The window is the last `penalty_window` characters before the one that
is sampled. So what a penalty depends on is a function of the text, and is found again wherever the text continues.

A window is an array of codes: an id for a character that was generated, `prompt_codes(id)` for one that was read, and
NO_CHARACTER where the text has not begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.sampling import SamplingParams, SamplingTensors

NO_CHARACTER = -1
"""In a window: there is no character, or none that the vocabulary has."""
PROMPT_CODE = -2
"""In a window: minus the id of a character that was read."""
MAX_LOGIT_BIAS = 100.0
"""OpenAI's bound: the largest absolute value of a bias."""

Window = NDArray[np.int32]
"""(W,) the codes of the characters before the one that is sampled, the last one at the end."""


def prompt_codes(ids: NDArray[np.integer]) -> Window:
    """The codes of characters that were read; the code of a generated one is its id."""
    return (PROMPT_CODE - ids).astype(np.int32)


def new_window(params: SamplingParams, before: Window) -> Window:
    """The window before the first character that is sampled: (0,) for parameters that need none.

    Args:
        params: The parameters of the text.
        before: Codes of the text so far, of its end at least.
    """
    if not params.has_penalties:
        return before[:0]
    return before[-params.penalty_window :]


def advance_window(params: SamplingParams, window: Window, sampled: NDArray[np.integer]) -> Window:
    """The window after more ids were sampled."""
    if not params.has_penalties:
        return window
    return np.concatenate([window, sampled.astype(np.int32)])[-params.penalty_window :]


def stack_windows(windows: Sequence[Window]) -> NDArray[np.int32] | None:
    """The windows of a block's rows as one array (B, W), aligned at their ends; None if all are empty."""
    width = max(map(len, windows), default=0)
    if not width:
        return None
    stacked = np.full((len(windows), width), NO_CHARACTER, dtype=np.int32)
    for row, window in zip(stacked, windows, strict=True):
        if len(window):
            row[-len(window) :] = window
    return stacked


@dataclass(frozen=True, slots=True)
class LogitBias:
    """The biases of all rows of a block: row b has entries starts[b]..starts[b + 1]-1."""

    starts: NDArray[np.int32]  # (B + 1,)
    ids: NDArray[np.int32]  # (N,)
    values: NDArray[np.float64]  # (N,)

    @classmethod
    def of(cls, rows: Sequence[Mapping[int, float]]) -> LogitBias | None:
        """Put the biases of each row, value by id, into arrays; None if there are none."""
        if not any(rows):
            return None
        starts = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        ids = np.array([id for row in rows for id in row], dtype=np.int32)
        return cls(starts, ids, np.array([value for row in rows for value in row.values()], dtype=np.float64))

    def rows(self, chosen: NDArray[np.intp]) -> LogitBias:
        """The biases of some rows."""
        parts = [np.arange(self.starts[b], self.starts[b + 1]) for b in chosen]
        entries = np.concatenate(parts) if parts else np.empty(0, dtype=np.intp)
        starts = np.cumsum([0, *map(len, parts)]).astype(np.int32)
        return LogitBias(starts, self.ids[entries], self.values[entries])

    def dense(self, n_rows: int, vocab_size: int) -> NDArray[np.float64]:
        """The biases as an array (n_rows, V), 0 where there is none."""
        whole = np.zeros((n_rows, vocab_size))
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        whole[rows, self.ids] = self.values
        return whole


def adjusted_logits(logits: Tensor, windows: Tensor | None, bias: Tensor | None, params: SamplingTensors) -> Tensor:
    """Apply bias and penalties, computed in float64 and rounded to the logits' own type.

    Args:
        logits: (B, V).
        windows: (B, W) int64 codes, of which each row uses the last `penalty_window`; None without penalties.
        bias: (B, V) float64; None without.
        params: Each row's sampling parameters.

    Returns:
        (B, V); the rows without bias and penalties are unchanged.
    """
    adjusted = logits.double()
    if bias is not None:
        adjusted = adjusted + bias
    if windows is None:
        return adjusted.to(logits.dtype)
    width = windows.shape[1]
    age = torch.arange(width, 0, -1, device=logits.device)[None, :]
    is_inside = (age <= params["penalty_window"][:, None]) & (windows != NO_CHARACTER)
    is_generated = is_inside & (windows >= 0)
    ids = torch.where(windows >= 0, windows, PROMPT_CODE - windows).clamp(min=0)
    counts = torch.zeros_like(adjusted)
    occurrences = counts.scatter_add(1, ids, is_inside.double())  # sums of ones are exact in any order
    generated = counts.scatter_add(1, ids, is_generated.double())
    repetition = params["repetition_penalty"][:, None]
    repeated = torch.where(adjusted > 0, adjusted / repetition, adjusted * repetition)
    adjusted = torch.where(occurrences > 0, repeated, adjusted)
    adjusted = adjusted - params["frequency_penalty"][:, None] * generated
    adjusted = adjusted - torch.where(generated > 0, params["presence_penalty"][:, None], 0.0)
    return adjusted.to(logits.dtype)
