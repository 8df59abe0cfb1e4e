"""Score many texts side by side: the engine reads each in a slot of its own, beside the texts that it generates."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from service.engine.sequence import SequenceRequest
from service.engine.stream import End, Failed, Scored, StreamGroup
from service.errors import QueueFull, ServiceError, TimedOut
from service.models.loaded_model import LoadedModel

_TIMEOUT_S = 60.0
"""For the next block of a text; it may have to wait for a slot."""
_RETRY_S = 0.05


def score_list(model: LoadedModel, texts: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
    """Return the natural log-probability of each character of each text, as the stepper computes them.

    The longest are read first: rows of about the same length end together, so that few of a block's rows stand still.

    Args:
        model: Reads the texts.
        texts: Ids of each, (n,) n >= 1.

    Raises:
        QueueFull: Every slot and every place in the queue is taken.
        Draining: The engine is stopping.
        TimedOut: The engine did not read on in time.
    """
    engine, group = model.engine, StreamGroup()
    waiting = deque(sorted(range(len(texts)), key=lambda i: -len(texts[i])))
    logprobs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
    start = np.array([engine.vocab.start], dtype=np.int32)
    n_running, n_ended = 0, 0
    try:
        while n_ended < len(texts):
            while waiting and n_running < engine.max_group:
                feed = np.concatenate([start, texts[waiting[0]]])
                request = SequenceRequest(feed, 0, 0, SamplingParams(temperature=0), 0, is_scored=True)
                try:
                    engine.submit(request, group.stream(waiting[0]))
                except QueueFull:
                    if not n_ended and not n_running:
                        raise
                    break
                waiting.popleft()
                n_running += 1
            got = group.get(_TIMEOUT_S if n_running else _RETRY_S)
            if got is None:
                if n_running:
                    raise TimedOut("the engine did not read on in time")
                continue
            index, item = got
            match item:
                case Scored():
                    logprobs[index] = item.logprobs
                case End():
                    n_running -= 1
                    n_ended += 1
                case Failed():
                    raise item.error if isinstance(item.error, ServiceError) else ServiceError("internal error")
        return logprobs
    finally:
        group.close()
