"""Requests for an engine of the tests' alphabet, and reading their streams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model.network.sampling import SamplingParams
from model.network.state import HiddenState
from model.structured_outputs.automaton import Automaton
from service.engine.sequence import SequenceRequest
from service.engine.stream import Chunk, End, Failed, Stream
from tests.conftest import ALPHABET


def request(
    prompt: str = "",
    max_chars: int = 50,
    seed: int = 1,
    *,
    stop: tuple[str, ...] = (),
    after: HiddenState | None = None,
    sampling: SamplingParams | None = None,
    snapshot_every_s: float | None = None,
    deadline: float | None = None,
    captures: Mapping[int, str] | None = None,
    automaton: Automaton | None = None,
) -> SequenceRequest:
    """A request that begins a new text, or continues after a state."""
    next_input = ALPHABET.start if after is None else after.next_input
    return SequenceRequest(
        feed=np.array([next_input, *ALPHABET.encode(prompt)], dtype=np.int32),
        start_position=0 if after is None else after.position,
        max_chars=max_chars,
        sampling=sampling or SamplingParams(),
        seed=seed,
        state=None if after is None else after.values,
        stop=stop,
        snapshot_every_s=snapshot_every_s,
        deadline=deadline,
        captures=captures or {},
        automaton=automaton,
        budget=max_chars,
    )


def read(stream: Stream) -> tuple[str, list[Chunk], End]:
    """The whole text, its chunks, and its end.

    Raises:
        Exception: The error of a sequence that failed.
    """
    chunks: list[Chunk] = []
    while True:
        item = stream.get(timeout_s=30)
        assert item is not None
        if isinstance(item, Failed):
            raise item.error
        if isinstance(item, End):
            return "".join(chunk.text for chunk in chunks), chunks, item
        if isinstance(item, Chunk):
            chunks.append(item)
