"""The log-probability of each character, and of the most probable alternatives, as the API shows them.

For each character:

    logprob       its natural log-probability, at temperature 1 and without filters
    probability   its probability in the distribution that was sampled from, with masks, temperature and filters
    top           [[character, logprob, probability], ...] of the most probable characters, in order

Without alternatives there is only `logprob`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.penalties import LogitBias, Window, adjusted_logits, advance_window, stack_windows
from model.network.sampling import SamplingParams, as_batch, as_tensors, distribution
from model.structured_outputs.masks import RowConstraint
from model.text.vocab import Vocabulary
from service.inspection.scorer import Scorer, own_logprobs
from service.models.on_demand_network import OnDemandNetwork

_DIGITS = 5
_EXECUTOR = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="alternatives")
"""The threads that compute the alternatives of all texts; they start with the first one. The plain network is read by
torch: on dozens of requests' threads at once it would hold up everything else that the process does, and torch keeps
threads and memory for each thread that has called it."""


class TokenLogprobs:
    """Computes them for one text, as it is generated."""

    def __init__(
        self,
        network: OnDemandNetwork,
        vocab: Vocabulary,
        sampling: SamplingParams,
        top: int,
        *,
        window: Window,
        logit_bias: Mapping[int, float],
        constraint: RowConstraint | None = None,
    ) -> None:
        """Prepare; without alternatives (top 0) the network is not loaded.

        Args:
            network: Of the model.
            vocab: Its vocabulary.
            sampling: How the text is sampled.
            top: The number of alternatives.
            window: What penalties look at before the first character.
            logit_bias: By id.
            constraint: Of the text, before its first character.
        """
        self._network = network
        self._vocab = vocab
        self._sampling = sampling
        self._top = top
        self._scorer: Scorer | None = None
        self._window = window
        self._bias = LogitBias.of([logit_bias])
        self._constraint = constraint

    def begin_at(self, state: NDArray[np.floating] | None, next_input: int) -> None:
        """Set the state (S, L, H) before the first character that is computed."""
        if self._top:
            self._scorer = Scorer(self._network.get(), state, next_input)

    def compute(self, text: str, logprobs: NDArray[np.floating]) -> list[dict[str, Any]]:
        """Return the next characters' log-probabilities; must be called with all text, in order.

        Args:
            text: The characters.
            logprobs: (n,) their log-probabilities as the stepper computed them, which the answer shows to the bit.
        """
        if not self._top:
            return [{"logprob": round(logprob, _DIGITS)} for logprob in logprobs.tolist()]
        assert self._scorer is not None, "begin_at comes before the first text"
        ids = self._vocab.encode(text)
        computed = _EXECUTOR.submit(self._alternatives, self._scorer, ids).result()
        return [{**item, "logprob": round(own, _DIGITS)} for item, own in zip(computed, logprobs.tolist(), strict=True)]

    def _alternatives(self, scorer: Scorer, ids: NDArray[np.int32]) -> list[dict[str, Any]]:
        logits = scorer.read(ids)
        with torch.inference_mode():
            adjusted = self._masked(logits, self._adjusted(logits, ids), ids)
        return token_logprobs(logits, ids, self._vocab, self._sampling, self._top, adjusted)

    def _masked(self, logits: Tensor, adjusted: Tensor | None, ids: NDArray[np.int32]) -> Tensor | None:
        """The logits (T, V) to sample from, minus infinity for the ids that the constraint does not allow."""
        if self._constraint is None or not len(ids):
            return adjusted
        automaton, state, budget = self._constraint
        allowed = []
        for id in ids.tolist():
            allowed.append(automaton.allowed(state, budget))
            state, budget = automaton.advance(state, [id]), budget - 1
        self._constraint = RowConstraint(automaton, state, budget)
        drawn_from = logits if adjusted is None else adjusted
        return drawn_from.masked_fill(~torch.from_numpy(np.stack(allowed)), -torch.inf)

    def _adjusted(self, logits: Tensor, ids: NDArray[np.int32]) -> Tensor | None:
        """The logits (T, V) after bias and penalties; None if there are neither."""
        has_penalties, n = self._sampling.has_penalties, len(ids)
        if not n or (self._bias is None and not has_penalties):
            return None
        bias = None if self._bias is None else torch.from_numpy(self._bias.dense(1, len(self._vocab)))
        windows = None
        if has_penalties:
            before = []
            for id in ids:
                before.append(self._window)
                self._window = advance_window(self._sampling, self._window, np.array([id]))
            stacked = stack_windows(before)
            windows = None if stacked is None else torch.from_numpy(stacked.astype(np.int64))
        return adjusted_logits(logits, windows, bias, as_tensors(as_batch([self._sampling] * n)))


@torch.inference_mode()
def token_logprobs(
    logits: Tensor,
    ids: NDArray[np.int32],
    vocab: Vocabulary,
    sampling: SamplingParams,
    top: int,
    adjusted: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Return the log-probabilities of ids (T,) and of `top` alternatives.

    Args:
        logits: (T, V).
        ids: (T,).
        vocab: Of the ids.
        sampling: How the ids were sampled.
        top: The number of alternatives.
        adjusted: (T, V) the logits after bias and penalties; None: there were none.
    """
    own = own_logprobs(logits, ids).tolist()
    if not top:
        return [{"logprob": round(logprob, _DIGITS)} for logprob in own]
    logprobs = torch.log_softmax(logits, dim=-1)  # (T, V)
    column = torch.from_numpy(ids.astype(np.int64))[:, None]
    drawn_from = logits if adjusted is None else adjusted
    probabilities = distribution(drawn_from, as_tensors(as_batch([sampling] * len(ids))))  # (T, V)
    order = logprobs.sort(dim=-1, descending=True, stable=True).indices[:, :top]  # (T, top)
    rows = zip(
        own,
        probabilities.gather(-1, column)[:, 0].tolist(),
        order.tolist(),
        logprobs.gather(-1, order).tolist(),
        probabilities.gather(-1, order).tolist(),
        strict=True,
    )
    return [
        {
            "logprob": round(logprob, _DIGITS),
            "probability": round(probability, _DIGITS),
            "top": [
                [vocab.characters[i], round(top_logprob, _DIGITS), round(top_probability, _DIGITS)]
                for i, top_logprob, top_probability in zip(top_ids, top_logprobs, top_probabilities, strict=True)
            ],
        }
        for logprob, probability, top_ids, top_logprobs, top_probabilities in rows
    ]
