"""Read a text with the plain network, from any state on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.network.char_rnn import CharRNN


class Scorer:
    """One text, read in float32 on the caller's thread. Generation does not depend on it."""

    def __init__(self, network: CharRNN, state: NDArray[np.floating] | None, next_input: int) -> None:
        """Start from a state.

        Args:
            network: Reads the text.
            state: (S, L, H); None for a new text.
            next_input: The id that the state has not consumed.
        """
        self._network = network
        self._next_input = next_input
        dtype = network.head.weight.dtype
        if state is None:
            self._state = network.zero_state(1)
        else:
            self._state = tuple(torch.tensor(part, dtype=dtype)[:, None].contiguous() for part in state)

    @torch.inference_mode()
    def read(self, ids: NDArray[np.int32]) -> Tensor:
        """Return the logits (T, V), in float64, that predict each of `ids` (T,); then stand after them."""
        if not len(ids):
            return torch.zeros((0, self._network.config.vocab_size), dtype=torch.float64)
        inputs = np.concatenate([[self._next_input], ids[:-1]]).astype(np.int64)
        output, self._state = self._network(torch.from_numpy(inputs)[None], self._state)
        self._next_input = int(ids[-1])
        logits: Tensor = output[0].double()
        return logits


def own_logprobs(logits: Tensor, ids: NDArray[np.int32]) -> Tensor:
    """Return the natural log-probability (T,) of each of `ids` (T,) under its logits (T, V)."""
    column = torch.from_numpy(ids.astype(np.int64))[:, None]
    return torch.log_softmax(logits, dim=-1).gather(-1, column)[:, 0]
