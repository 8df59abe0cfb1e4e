"""What a request asks of a model, checked before any work is done."""

from __future__ import annotations

import secrets

import numpy as np

from model.errors import UnknownCharacters
from service.errors import BadRequest
from service.models.manager import LoadedModel
from service.schemas import GenerateRequest
from service.store.sessions import LeasedSession, Session, TurnRecord, digest


def seed_of(request: GenerateRequest, session: Session | None, held: LeasedSession | None) -> int:
    """The one asked for, else the session's, else one drawn here."""
    if request.seed is not None:
        return request.seed
    if session is not None:
        return session.seed
    return held.last.record.seed if held is not None and held.last is not None else secrets.randbits(53)


def checked(model: LoadedModel, request: GenerateRequest, max_chars: int) -> TurnRecord:
    """The turn that is asked for, its start and seed still open. Raised: BadRequest."""
    if request.max_chars > max_chars:
        raise BadRequest("max_chars", request.max_chars, f"at most {max_chars}")
    if request.position is not None and request.session_id is None:
        raise BadRequest("position", request.position, "a session_id beside it", problem="belongs to a session")
    prompt = encode(model, "prompt", request.prompt, request.on_unknown == "skip")
    return TurnRecord(
        start=0,
        prompt=request.prompt if len(prompt) == len(request.prompt) else model.engine.vocab.decode(prompt),
        max_chars=request.max_chars,
        sampling=request.sampling,
        stop=_spellable(model, request),
        seed=0,
        fingerprint=model.fingerprint,
        numerics=model.engine.numerics,
        request=digest(request.model_dump_json()),
    )


def encode(model: LoadedModel, name: str, text: str, skip: bool) -> np.ndarray:
    try:
        return model.engine.vocab.encode(text, "skip" if skip else "error")
    except UnknownCharacters as e:
        unknown = [{"position": i, "character": c} for i, c in e.unknown[:32]]
        expected = "characters of the model's vocabulary, or on_unknown = 'skip'"
        raise BadRequest(name, unknown, expected, problem=str(e)) from e


def _spellable(model: LoadedModel, request: GenerateRequest) -> list[str]:
    """The stop strings that the model could write at all."""
    spellable = []
    for i, stop in enumerate(request.stop):
        try:
            encode(model, f"stop.{i}", stop, skip=False)
            spellable.append(stop)
        except BadRequest:
            if request.on_unknown == "error":
                raise
    return spellable
