"""Score a text: how probable each of its characters is to the model, after the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation import protocols
from model.network.sampling import SamplingParams
from service.errors import ModelChanged, UnknownSession
from service.inspection.pacing import Pacer
from service.inspection.scorer import Scorer, own_logprobs
from service.inspection.token_logprobs import token_logprobs
from service.models.loaded_model import LoadedModel
from service.store.sessions import SessionStore

_CHUNK = 1024  # characters read at once
_DIGITS = 5


def score_text(
    model: LoadedModel,
    scorer: Scorer,
    text: str,
    ids: NDArray[np.int32],
    top_logprobs: int | None,
    pacer: Pacer,
    check_client: Callable[[], None],
) -> dict[str, Any]:
    """Return the losses of a text under the stateful protocol, and the surprisal of each character.

    Args:
        model: Whose vocabulary the ids are of.
        scorer: Stands before the text.
        text: The normalized text.
        ids: The characters of the text that the vocabulary has, (n,).
        top_logprobs: Alternatives for each character; None: no log-probabilities.
        pacer: Lets generation go first.
        check_client: Called now and then; what it raises ends the work.
    """
    nats: list[float] = []
    details: list[dict[str, Any]] = []
    for part in _parts(ids, check_client):
        with pacer.part(lambda: model.engine.in_flight > 0):
            logits = scorer.read(part)
            nats += (-own_logprobs(logits, part)).tolist()
            if top_logprobs is not None:
                details += token_logprobs(logits, part, model.engine.vocab, SamplingParams(), top_logprobs)
    loss = float(np.mean(nats))
    is_known = [character in model.engine.vocab.characters for character in text]
    answer: dict[str, Any] = {
        "bits_per_character": protocols.bits(loss),
        "nats_per_character": loss,
        "characters": len(ids),
        "surprisal": _aligned([round(protocols.bits(loss), _DIGITS) for loss in nats], is_known),
    }
    if top_logprobs is not None:
        answer["logprobs"] = _aligned(details, is_known)
    return answer


def scorer_at(model: LoadedModel, sessions: SessionStore, session_id: str | None) -> tuple[Scorer, int]:
    """Return a scorer at the end of a session, or of a new text, and its position.

    Raises:
        UnknownSession: The session does not exist, or has not been saved yet.
        ModelChanged: The session was written by another model.
        UnreadableSession: What is stored of the session is damaged.
        StoreUnavailable: The store does not answer.
        NoModel: The model's file cannot be read.
    """
    network = model.network.get()
    if session_id is None:
        return Scorer(network, None, model.engine.vocab.start), 0
    session, turn = sessions.load(session_id)
    if session is None:
        is_running = turn is not None and not turn.is_complete
        unsaved = "the session has not been saved yet; score the text when its first turn has ended"
        raise UnknownSession(unsaved if is_running else "the session does not exist or has expired")
    if not model.wrote(session.state):
        raise ModelChanged("the session was written by another model", position=session.position)
    model.check_state(session.state)
    return Scorer(network, session.state.values, session.state.next_input), session.position


def _parts(ids: NDArray[np.int32], check_client: Callable[[], None]) -> Iterator[NDArray[np.int32]]:
    for start in range(0, len(ids), _CHUNK):
        check_client()
        yield ids[start : start + _CHUNK]


def _aligned(values: list[Any], is_known: list[bool]) -> list[Any]:
    """One value for each character that was sent; None for those that were skipped."""
    remaining = iter(values)
    return [next(remaining) if known else None for known in is_known]
