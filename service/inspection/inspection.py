"""The use case of looking at a text that is there: score it, look inside the network as it reads. It knows no HTTP.

It runs on the request's thread, beside the engine; a few at a time, so that writing does not wait for looking.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation import protocols, unit_correlations
from model.network.gates import GateActivations, gate_activations
from model.network.sampling import SamplingParams
from service.errors import BadRequest, ModelChanged, Overloaded, UnknownSession, UnsupportedCell
from service.generation import replay
from service.generation.plan import encode
from service.inspection.token_logprobs import Scorer, logprobs_of, looks
from service.models.manager import LoadedModel, ModelManager
from service.schemas import InspectRequest, ScoreRequest
from service.store.sessions import NO_SESSION, SessionStore

MAX_LOOKS = 2  # at once, in a process
MAX_TOP_CHARS = 10_000  # of a text with the most probable characters at each: 250 bytes a character are sent
MAX_INSPECTED = 1000  # characters; the gates are read one character at a time
MAX_VALUES = 512_000  # numbers in a map
_CHUNK = 1024
_DIGITS = 5


class InspectionService:
    """Answers POST /score and POST /inspect."""

    def __init__(self, serving: ModelManager, sessions: SessionStore, max_chars: int) -> None:
        self._serving = serving
        self._sessions = sessions
        self._max_chars = max_chars
        self._places = threading.BoundedSemaphore(MAX_LOOKS)

    def score(self, request: ScoreRequest) -> dict[str, Any]:
        """How surprising a text is, by character: protocol (b) from the state that it follows.

        Raised: BadRequest, UnknownSession, ModelChanged, StoreUnavailable, Overloaded, NoModel.
        """
        model = self._serving.current
        limit = min(self._max_chars, MAX_TOP_CHARS) if request.logprobs else self._max_chars
        _at_most("text", request.text, limit)
        ids = _read(model, request.text, request.on_unknown)
        reading, position = self._begin(model, request.session_id)
        own: list[float] = []  # nats
        told: list[dict[str, Any]] = []
        with self._place():
            for at in range(0, len(ids), _CHUNK):
                part = ids[at : at + _CHUNK]
                logits = reading.read(part)
                own += logprobs_of(logits, part).tolist()
                if request.logprobs is not None:
                    told += looks(logits, part, model.engine.vocab, SamplingParams(), request.logprobs)
        known = [c in model.engine.vocab.characters for c in request.text]
        nats = -float(np.mean(own))
        answer: dict[str, Any] = {
            "bits_per_character": protocols.bits(nats),
            "nats_per_character": nats,
            "characters": len(ids),
            "position": position,
            "surprise": _spread([round(protocols.bits(-each), _DIGITS) for each in own], known),
            "model": model.as_dict(),
        }
        if request.logprobs is not None:
            answer["logprobs"] = _spread(told, known)
        return answer

    def inspect(self, request: InspectRequest) -> dict[str, Any]:
        """The gates of some units, one quantity of all, and which units tell of something simple.

        Raised: BadRequest, UnsupportedCell, Overloaded, NoModel.
        """
        model = self._serving.current
        config = model.reader.open().config
        if config.cell != "lstm":
            raise UnsupportedCell("cell", config.cell, "'lstm': the cells of other types have other gates")
        _below("layer", request.layer, config.n_layers)
        for n, unit in enumerate(request.units):
            _below(f"units.{n}", unit, config.n_hidden)
        _at_most("text", request.text, min(MAX_INSPECTED, MAX_VALUES // config.n_hidden if request.map else 10**9))
        ids = _read(model, request.text, request.on_unknown)
        text = model.engine.vocab.decode(ids)
        with self._place():
            found = gate_activations(model.reader.open(), [model.engine.vocab.start, *ids.tolist()])
        names = GateActivations.__slots__  # without the vocabulary's start
        found = [GateActivations(*(getattr(layer, name)[1:] for name in names)) for layer in found]
        layer = found[request.layer]
        answer: dict[str, Any] = {
            "text": text,
            "characters": len(ids),
            "layers": config.n_layers,
            "hidden": config.n_hidden,
            "layer": request.layer,
            "units": [
                {"unit": u, **{name: _numbers(getattr(layer, name)[:, u]) for name in GateActivations.__slots__}}
                for u in request.units
            ],
            "telling": _telling(text, found),
            "model": model.as_dict(),
        }
        if request.map is not None:
            values = getattr(layer, request.map)
            shown = np.tanh(values) if request.map == "c" else values
            answer["map"] = {"of": request.map, "values": np.round(shown.T, 3).tolist()}  # (H, T)
        return answer

    def _begin(self, model: LoadedModel, session_id: str | None) -> tuple[Scorer, int]:
        """Where the text follows: a new text's beginning, or where a session of this model stands."""
        network = model.reader.open()
        if session_id is None:
            return Scorer(network, None, model.engine.vocab.start), 0
        session, last = self._sessions.load(session_id)
        if session is None:
            raise UnknownSession(NO_SESSION if last is None else "this session has not been saved yet")
        if not replay.is_of(model, session):
            raise ModelChanged("this session was written by another model", position=session.position)
        return Scorer(network, session.state.values, session.state.next_input), session.position

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise Overloaded(f"{MAX_LOOKS} texts are being looked at; try again")
        try:
            yield
        finally:
            self._places.release()


def _read(model: LoadedModel, text: str, on_unknown: str) -> NDArray[np.int32]:
    """Raised: BadRequest for characters that the model does not know, or for none that it does."""
    ids = encode(model, "text", text, on_unknown == "skip")
    if not len(ids):
        raise BadRequest("text", text, "some characters of the model's vocabulary", problem="contains none")
    return ids


def _telling(text: str, layers: list[GateActivations]) -> dict[str, Any]:
    """For each feature: what it counts, and the units whose tanh(c) goes with it most."""
    cells = [np.tanh(layer.c) for layer in layers]
    return {
        name: {
            "counts": counts,
            "units": [
                {"layer": layer, "unit": unit, "r": round(r, 4)}
                for layer, unit, r in unit_correlations.rank_units(text, cells, name)
            ],
        }
        for name, (counts, _) in unit_correlations.FEATURES.items()
    }


def _numbers(values: NDArray[np.floating]) -> list[float]:
    found: list[float] = np.round(values, _DIGITS).tolist()
    return found


def _spread(values: list[Any], known: list[bool]) -> list[Any]:
    """One a character of what was sent: null for those that were skipped."""
    each = iter(values)
    return [next(each) if is_known else None for is_known in known]


def _at_most(field: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise BadRequest(field, text, f"at most {limit} characters", problem=f"got {len(text)} characters")


def _below(field: str, value: int, count: int) -> None:
    if value >= count:
        raise BadRequest(field, value, f"0 to {count - 1}")
