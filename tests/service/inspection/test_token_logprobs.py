"""The log-probabilities of alternatives: however many texts want them, few are computed at a time."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model.network.sampling import SamplingParams
from service.inspection.scorer import Scorer
from service.inspection.token_logprobs import TokenLogprobs
from tests.conftest import ALPHABET, random_checkpoint


def test_few_texts_are_computed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 threads, at most half as many as there are cores are in torch at a time, and none gets another result."""
    network: Any = SimpleNamespace(get=random_checkpoint().network)
    texts = ["hello", "to be or not to be", "it is"] * 6
    alone = [computed(network, text) for text in texts]
    inside, most, lock, read = 0, 0, threading.Lock(), Scorer.read

    def watched(self: Scorer, ids: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            threading.Event().wait(0.005)  # long enough for every other thread to come here, if it may
            return read(self, ids)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(Scorer, "read", watched)
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda text: computed(network, text), texts))
    assert together == alone
    assert most <= max(1, (os.cpu_count() or 1) // 2)


def computed(network: Any, text: str) -> list[dict[str, Any]]:
    logprobs = TokenLogprobs(network, ALPHABET, SamplingParams(), 3, window=np.zeros(0, np.int32), logit_bias={})
    logprobs.begin_at(None, ALPHABET.start)
    return logprobs.compute(text, np.zeros(len(text), np.float32))
