"""Reads a text beside the engine, to look at it: what each character was drawn from, and how surprising it is.

Nothing that is written depends on it. The engine's stepper writes; this is the plain network in float32, on the thread
of whoever asks, loaded from the checkpoint when first asked for: who never asks pays nothing.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoints import file_format
from model.errors import CheckpointError
from model.network.char_rnn import CharRNN
from model.network.sampling import SamplingParams, as_batch, as_tensors, distribution
from model.text.vocab import Vocabulary
from service.errors import NoModel

_DIGITS = 5  # of what is told: enough to see by, and a stream of them is half as long


class OnDemandNetwork:
    """The network of one checkpoint, once somebody has asked for it."""

    def __init__(self, path: Path | None = None, fingerprint: str = "") -> None:
        self._path, self._fingerprint = path, fingerprint
        self._lock = threading.Lock()
        self._network: CharRNN | None = None

    def open(self) -> CharRNN:
        """The network, ready to evaluate. Raised: NoModel when its file is gone: another model has come."""
        with self._lock:
            if self._network is None:
                self._network = self._load()
            return self._network

    def _load(self) -> CharRNN:
        try:
            if self._path is None:
                raise CheckpointError("it was not loaded from a file")
            loaded = file_format.load(self._path)
            if loaded.fingerprint != self._fingerprint:
                raise CheckpointError(f"{self._path.name} is another model by now")
        except CheckpointError as e:
            raise NoModel(f"the served model cannot be read again to look into it: {e}") from e
        return loaded.network()


class Scorer:
    """One text as the network reads it, from a state on."""

    def __init__(self, network: CharRNN, values: NDArray[np.floating] | None, next_input: int) -> None:
        """values (S, L, H), None for a text not begun; `next_input` is the id that the state has not consumed."""
        self._network = network
        self._pending = next_input
        dtype = network.head.weight.dtype
        if values is None:
            self._state = network.zero_state(1)
        else:
            self._state = tuple(torch.tensor(each, dtype=dtype)[:, None].contiguous() for each in values)

    @torch.inference_mode()
    def read(self, ids: NDArray[np.int32]) -> Tensor:
        """Logits (T, V) float64 that each of ids (T,) is told by; then stands before what follows them."""
        fed = np.concatenate([[self._pending], ids[:-1]])[: len(ids)].astype(np.int64)
        if not len(fed):
            return torch.zeros((0, self._network.config.vocab_size), dtype=torch.float64)
        out, self._state = self._network(torch.from_numpy(fed)[None], self._state)
        self._pending = int(ids[-1])
        logits: Tensor = out[0].double()
        return logits


class TokenLogprobs:
    """What each character of one text was drawn from, as it is written.

    A look at a character is JSON: `logprob`, natural, at temperature 1 and without filters, as the stepper drew it; and
    where any of the most probable ones are asked for, `probability`, its share of what it was drawn from (with the
    temperature and the filters), and `top`: [character, logprob, probability] of the most probable, in order.
    """

    def __init__(self, reader: OnDemandNetwork, vocab: Vocabulary, params: SamplingParams, top: int) -> None:
        self._reader, self._vocab, self._params, self._top = reader, vocab, params, top
        self._reading: Scorer | None = None

    def stand(self, values: NDArray[np.floating] | None, next_input: int) -> None:
        """Begin here: with the state before the first character that is looked at."""
        if self._top:
            self._reading = Scorer(self._reader.open(), values, next_input)

    def at(self, text: str, logprobs: list[float]) -> list[dict[str, Any]]:
        """The looks at the next characters; to be called with all that is written, in order."""
        if not self._top:
            return [{"logprob": round(each, _DIGITS)} for each in logprobs]
        assert self._reading is not None, "the state that the text begins with has not come"
        ids = self._vocab.encode(text)
        found = looks(self._reading.read(ids), ids, self._vocab, self._params, self._top)
        return [{**look, "logprob": round(each, _DIGITS)} for look, each in zip(found, logprobs, strict=True)]


def logprobs_of(logits: Tensor, ids: NDArray[np.int32]) -> Tensor:
    """The natural log-probability of each of ids (T,) by its logits (T, V): (T,)."""
    drawn = torch.from_numpy(ids.astype(np.int64))[:, None]
    return torch.log_softmax(logits, dim=-1).gather(-1, drawn)[:, 0]


@torch.inference_mode()
def looks(
    logits: Tensor, ids: NDArray[np.int32], vocab: Vocabulary, params: SamplingParams, top: int
) -> list[dict[str, Any]]:
    """TokenLogprobs at ids (T,) that were drawn by logits (T, V); see TokenLogprobs."""
    logprobs = torch.log_softmax(logits, dim=-1)  # (T, V)
    drawn = torch.from_numpy(ids.astype(np.int64))[:, None]
    own = logprobs.gather(-1, drawn)[:, 0].tolist()
    if not top:
        return [{"logprob": round(each, _DIGITS)} for each in own]
    probs = distribution(logits, as_tensors(as_batch([params] * len(ids))))  # (T, V)
    order = logprobs.sort(dim=-1, descending=True, stable=True).indices[:, :top]  # (T, n)
    rows = zip(
        own,
        probs.gather(-1, drawn)[:, 0].tolist(),
        order.tolist(),
        logprobs.gather(-1, order).tolist(),
        probs.gather(-1, order).tolist(),
        strict=True,
    )
    return [
        {
            "logprob": round(logprob, _DIGITS),
            "probability": round(probability, _DIGITS),
            "top": [
                [vocab.characters[i], round(lp, _DIGITS), round(p, _DIGITS)]
                for i, lp, p in zip(best, best_logprobs, best_probs, strict=True)
            ],
        }
        for logprob, probability, best, best_logprobs, best_probs in rows
    ]
