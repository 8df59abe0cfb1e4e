"""The use cases of looking at a given text: score it, inspect the network while it reads it. This module knows no HTTP.

They run on the request's thread, beside the engine, and only a few at a time, so that generation stays fast.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation import protocols
from model.stepper.scoring import PackedTexts
from model.text.items.record import DEFAULT_STATISTIC
from service.errors import BadRequest, Overloaded
from service.inspection.gates import check_inspectable, inspect_text
from service.inspection.pacing import Pacer
from service.inspection.score import score_text, scorer_at
from service.inspection.score_items import score_items
from service.inspection.score_list import score_list
from service.inspection.scorer import Scorer
from service.models.loaded_model import LoadedModel
from service.models.manager import ModelManager
from service.schemas import InspectRequest, OnUnknown, ScoreRequest
from service.store.sessions import SessionStore

MAX_CONCURRENT = 2
"""Requests that are answered at the same time, in one process."""
MAX_TOP_LOGPROBS_CHARS = 10_000
"""Characters of a text that is scored with alternatives: each takes about 250 bytes of the answer."""
MAX_INSPECTED_CHARS = 1000
"""The gates are computed one character at a time."""
MAX_MAP_VALUES = 512_000
"""Numbers in a map: units x characters."""


class InspectionService:
    """Answers POST /score and POST /inspect."""

    def __init__(self, models: ModelManager, sessions: SessionStore, max_chars: int) -> None:
        """Connect the service to what it uses; `max_chars` is the longest text that is scored."""
        self._models = models
        self._sessions = sessions
        self._max_chars = max_chars
        self._pacer = Pacer()
        self._capacity = threading.BoundedSemaphore(MAX_CONCURRENT)

    def score(self, request: ScoreRequest, check_client: Callable[[], None]) -> dict[str, Any]:
        """Score a text as a new one, or as the continuation of a session.

        Args:
            request: The request.
            check_client: Called now and then; what it raises ends the work.

        Raises:
            BadRequest: A value cannot be used.
            UnknownSession: The session does not exist.
            ModelChanged: The session was written by another model.
            StoreUnavailable: The store does not answer.
            Overloaded: As many requests as allowed are being answered.
            NoModel: No model is served, or its file cannot be read.
        """
        if isinstance(request.text, list):
            return self._score_list(request, request.text, check_client)
        _check_no_rank(request)
        limit = min(self._max_chars, MAX_TOP_LOGPROBS_CHARS) if request.logprobs else self._max_chars
        name = request.model
        if request.session_id is not None:
            session_model = self._models.of_session(self._sessions, request.session_id)
            name = name or session_model
        with self._models.acquire(name) as lease:
            model = lease.model
            text = model.normalize(request.text)
            ids = _encode(model, text, limit, request.on_unknown)
            scorer, position = scorer_at(model, self._sessions, request.session_id)
            with self._one_of_few():
                scored = score_text(model, scorer, text, ids, request.logprobs, self._pacer, check_client)
            return {"text": text, **scored, "position": position, "model": model.as_dict()}

    def logprobs(
        self, model: LoadedModel, text: str, top_logprobs: int, check_client: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Return the log-probability of each character of a new text, and of the most probable alternatives.

        Args:
            model: The model, of which the caller has a lease.
            text: Characters of the model's vocabulary.
            top_logprobs: Alternatives for each character.
            check_client: Called now and then; what it raises ends the work.

        Raises:
            Overloaded: As many requests as allowed are being answered.
            NoModel: The model's file cannot be read.
        """
        scorer = Scorer(model.network.get(), None, model.engine.vocab.start)
        ids = model.engine.vocab.encode(text)
        with self._one_of_few():
            scored = score_text(model, scorer, text, ids, top_logprobs, self._pacer, check_client)
        logprobs: list[dict[str, Any]] = scored["logprobs"]
        return logprobs

    def _score_list(self, request: ScoreRequest, texts: list[str], check_client: Callable[[], None]) -> dict[str, Any]:
        """Score each text by itself, in the engine; the model of a list scores items, whose ends count."""
        for field, value in (("session_id", request.session_id), ("logprobs", request.logprobs)):
            if value is not None:
                raise BadRequest(field, value, "null with a list of texts")
        with self._models.acquire(request.model) as lease:
            model = lease.model
            if model.items is not None:
                rank_by = request.rank_by or DEFAULT_STATISTIC
                scored = score_items(model, texts, self._max_chars, request.on_unknown, rank_by, check_client)
                return {**scored, "model": model.as_dict()}
            _check_no_rank(request)
            ids = [
                _encode(model, model.normalize(text), self._max_chars, request.on_unknown, f"text.{i}")
                for i, text in enumerate(texts)
            ]
            lengths = np.fromiter(map(len, ids), np.int64, len(ids))
            order = np.array(sorted(range(len(texts)), key=texts.__getitem__), np.int64)
            packed = PackedTexts.of(np.concatenate(ids), lengths, order, model.engine.vocab.start)
            logprobs = score_list(model, packed, check_client)
            begins = packed.scored_starts
            nats = [-math.fsum(logprobs[start:end].tolist()) for start, end in pairwise(begins.tolist())]
            by_index = packed.in_order_of_caller(np.array(nats)).tolist()
            results = [
                {"index": i, **_losses(nats, n)}
                for i, (nats, n) in enumerate(zip(by_index, lengths.tolist(), strict=True))
            ]
            whole = _losses(math.fsum(by_index), packed.n_scored)
            return {"results": results, **whole, "model": model.as_dict()}

    def inspect(self, request: InspectRequest) -> dict[str, Any]:
        """Return the gates of some units, a map of all, and which units correlate with features of the text.

        Raises:
            BadRequest: A value cannot be used.
            UnsupportedCell: The served network is not an LSTM.
            Overloaded: As many requests as allowed are being answered.
            NoModel: No model is served, or its file cannot be read.
            UnknownModel: The model that the request names does not exist.
        """
        with self._models.acquire(request.model) as lease:
            model = lease.model
            check_inspectable(model, request)
            limit = MAX_INSPECTED_CHARS
            if request.map is not None:
                limit = min(limit, MAX_MAP_VALUES // model.network.get().config.n_hidden)
            ids = _encode(model, model.normalize(request.text), limit, request.on_unknown)
            with self._one_of_few(), self._pacer.part(lambda: model.engine.in_flight > 0):
                inspected = inspect_text(model, request, ids)
            return {**inspected, "model": model.as_dict()}

    @contextlib.contextmanager
    def _one_of_few(self) -> Iterator[None]:
        if not self._capacity.acquire(blocking=False):
            raise Overloaded(f"{MAX_CONCURRENT} texts are being scored or inspected; try again")
        try:
            yield
        finally:
            self._capacity.release()


def _check_no_rank(request: ScoreRequest) -> None:
    if request.rank_by is not None:
        raise BadRequest("rank_by", request.rank_by, "none, or a list of items to score with a model of a list")


def _losses(nats: float, characters: int) -> dict[str, Any]:
    per_character = nats / characters
    bits = protocols.bits(per_character)
    return {"bits_per_character": bits, "nats_per_character": per_character, "characters": characters}


def _encode(
    model: LoadedModel, text: str, max_chars: int, on_unknown: OnUnknown, field: str = "text"
) -> NDArray[np.int32]:
    """Encode the text of a request; at least one of its characters must be in the vocabulary."""
    if len(text) > max_chars:
        raise BadRequest(field, text, f"at most {max_chars} characters", problem=f"got {len(text)} characters")
    ids = model.encode(field, text, on_unknown)
    if not len(ids):
        raise BadRequest(field, text, "some characters of the model's vocabulary", problem="contains none")
    return ids
