"""Score many texts side by side: the engine reads each in a slot of its own, beside the texts that it generates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from service.engine.group_queue import GroupQueue
from service.engine.sequence import SequenceRequest
from service.engine.stream import Failed, Scored, Stream
from service.errors import TimedOut
from service.models.loaded_model import LoadedModel

_TIMEOUT_S = 60.0
"""For the next text to be read; it may have to wait for a slot."""
_POLL_INTERVAL_S = 0.25


def score_list(
    model: LoadedModel, texts: Sequence[NDArray[np.int32]], check_client: Callable[[], None]
) -> list[NDArray[np.float32]]:
    """Return the natural log-probability of each character of each text, as the stepper computes them.

    The longest are read first: rows of about the same length end together, so that few of a block's rows stand still.

    Args:
        model: Reads the texts.
        texts: Ids of each, (n,) n >= 1.
        check_client: Called now and then; what it raises ends the work.

    Raises:
        QueueFull: Every slot and every place in the queue is taken.
        Draining: The engine is stopping.
        TimedOut: The engine did not read on in time.
    """
    start = np.array([model.engine.vocab.start], dtype=np.int32)

    def submit(index: int, stream: Stream) -> None:
        feed = np.concatenate([start, texts[index]])
        model.engine.submit(SequenceRequest(feed, 0, 0, SamplingParams(temperature=0), 0, is_scored=True), stream)

    logprobs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(texts)
    longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    with closing(GroupQueue(model.engine, submit, longest_first)) as group:
        give_up_at = time.monotonic() + _TIMEOUT_S
        while not group.is_finished:
            check_client()
            received = group.get(_POLL_INTERVAL_S)
            if received is None:
                if time.monotonic() > give_up_at:
                    raise TimedOut("the engine did not read on in time")
                continue
            give_up_at = time.monotonic() + _TIMEOUT_S
            index, item = received
            match item:
                case Scored():
                    logprobs[index] = item.logprobs
                case Failed():
                    raise item.error
    return logprobs
