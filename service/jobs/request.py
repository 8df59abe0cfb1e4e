"""A request to train, checked before it is queued, and made into the trainer's own terms again where it runs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from model.config import PRESETS, ModelConfig, TrainConfig
from model.errors import ConfigError, TextError
from model.text.corpus import check_lengths
from model.text.vocab import Vocabulary
from service.errors import BadRequest, UnknownCorpus
from service.schemas import RetrainRequest
from service.store.corpora import Corpora

_NETWORK = {f.name for f in fields(ModelConfig)} - {"vocab_size"}
_TRAINING = {f.name for f in fields(TrainConfig)}


def check(request: RetrainRequest, corpora: Corpora) -> dict[str, Any]:
    """The request as JSON for the line. Raised: BadRequest naming the field, its value and what was expected."""
    if request.preset not in PRESETS:
        raise BadRequest("preset", request.preset, f"one of {', '.join(PRESETS)}")
    for name, value in request.settings.items():
        if name not in _NETWORK | _TRAINING:
            known = ", ".join([*RetrainRequest.model_fields, *sorted(_NETWORK | _TRAINING)])
            raise BadRequest(name, value, f"one of the fields {known}", problem="no such field")
    wanted = request.model_dump()
    try:
        network, config = settings_of(wanted)
        ModelConfig(vocab_size=2, **network)
    except ConfigError as e:
        raise BadRequest(e.field, e.value, e.expected, problem=e.problem) from e
    _check_texts(request, config, corpora)
    return wanted


def settings_of(wanted: dict[str, Any]) -> tuple[dict[str, Any], TrainConfig]:
    """A checked request -> the network's settings, less vocab_size, and the training's. Raised: ConfigError."""
    given = {**PRESETS[wanted["preset"]], **wanted}
    network = {k: v for k, v in given.items() if k in _NETWORK}
    return network, TrainConfig(**{k: v for k, v in given.items() if k in _TRAINING})


def _check_texts(request: RetrainRequest, config: TrainConfig, corpora: Corpora) -> None:
    lengths, characters = [], set[str]()
    for name in request.corpora:
        try:
            facts = corpora.facts(name)
        except UnknownCorpus as e:
            known = ", ".join(c["name"] for c in corpora.listing())
            raise BadRequest("corpus", name, f"one of {known}; PUT /corpora/NAME adds one") from e
        lengths.append(facts["n_characters"])
        characters |= set(facts["characters"])
    try:
        Vocabulary.of("".join(sorted(characters)), config.max_vocab)
        check_lengths(lengths, config)
    except TextError as e:
        raise BadRequest("corpus", request.corpus, e.expected, problem=e.problem) from e
