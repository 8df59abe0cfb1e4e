"""Score many texts side by side: the engine reads them between its blocks, or each in a slot of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from model.network.sampling import SamplingParams
from model.stepper.scoring import PackedTexts
from service.engine.group_queue import GroupQueue
from service.engine.sequence import SequenceRequest
from service.engine.stream import Failed, Scored, Stream
from service.errors import TimedOut
from service.models.loaded_model import LoadedModel

_TIMEOUT_S = 60.0
"""For the next text to be read in a slot; it may have to wait for one."""
_POLL_INTERVAL_S = 0.25


def score_list(model: LoadedModel, texts: PackedTexts, check_client: Callable[[], None]) -> NDArray[np.float32]:
    """Return the natural log-probability of each character of all texts, in the order of reading.

    They are those that the stepper computes for a text alone.

    Args:
        model: Reads the texts.
        texts: What to read.
        check_client: Called now and then; what it raises ends the work.

    Raises:
        QueueFull: Every place in the queue is taken.
        Draining: The engine is stopping.
        TimedOut: The engine did not read on in time.
    """
    if not model.engine.can_score:
        return _score_in_slots(model, texts, check_client)
    with closing(model.engine.score(texts)) as job:
        while (logprobs := job.wait(_POLL_INTERVAL_S)) is None:
            check_client()
    return logprobs


def _score_in_slots(model: LoadedModel, texts: PackedTexts, check_client: Callable[[], None]) -> NDArray[np.float32]:
    """The same with a sequence for each text.

    The longest are read first: rows of about the same length end together, so that few of a block's rows stand still.
    """

    def submit(index: int, stream: Stream) -> None:
        feed = texts.ids[texts.starts[index] : texts.starts[index + 1]]
        model.engine.submit(SequenceRequest(feed, 0, 0, SamplingParams(temperature=0), 0, is_scored=True), stream)

    logprobs, begins = np.empty(texts.n_scored, np.float32), texts.scored_starts
    longest_first = np.argsort(-texts.lengths, kind="stable").tolist()
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
                    logprobs[begins[index] : begins[index + 1]] = item.logprobs
                case Failed():
                    raise item.error
    return logprobs
