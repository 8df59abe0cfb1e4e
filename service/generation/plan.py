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
        raise BadRequest(
            f"max_chars: got {request.max_chars}, expected at most {max_chars}",
            field="max_chars", value=request.max_chars, expected=f"0 to {max_chars}",
        )  # fmt: skip
    if request.position is not None and request.session_id is None:
        raise BadRequest(
            "position: got it without a session_id, expected both: it says where to go on in a session",
            field="position", value=request.position, expected="only with a session_id",
        )  # fmt: skip
    prompt = encode(model, "prompt", request.prompt, request.on_unknown == "skip")
    return TurnRecord(
        start=0,
        prompt=request.prompt if len(prompt) == len(request.prompt) else model.engine.vocab.decode(prompt),
        max_chars=request.max_chars,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
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
        raise BadRequest(
            f"{name}: {e}; expected characters that it has, or on_unknown = 'skip'",
            field=name, value=[{"position": i, "character": c} for i, c in e.unknown[:32]],
            expected="characters of the model's vocabulary",
        ) from e  # fmt: skip


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
