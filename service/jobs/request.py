"""Validate a training request before it is queued, and turn it into the trainer's settings where it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from model.checkpoints import file_format, registry
from model.checkpoints.names import DEFAULT, is_model_name, store_folder
from model.config import PRESETS, ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError, TextError
from model.text.corpus import CorpusSizes, TextSizes
from model.text.fitting import FittedConfig, fit_to_text
from model.text.items.layout import ItemLayout
from model.text.memory_map import detect_layout, read_items
from model.text.vocab import Vocabulary
from model.training.learner import choose_workers
from model.training.warm_start import check_shape
from service.errors import BadRequest
from service.jobs.record import JsonObject
from service.schemas import RetrainRequest
from service.store.corpora import Corpora

_NETWORK_SETTINGS = {f.name for f in fields(ModelConfig)} - {"vocab_size"}
_TRAINING_SETTINGS = {f.name for f in fields(TrainConfig)}
_LAYOUT_SETTINGS = {f.name for f in fields(ItemLayout)}
_LIMITS = ("max_item_chars", "long_items", "duplicates", "novelty")  # fields of a layout for any kind of file
_SETTINGS = _NETWORK_SETTINGS | _TRAINING_SETTINGS | _LAYOUT_SETTINGS
_MAX_CHECKED_BYTES = 16 * 2**20  # of lists whose items are checked before a job is queued: a second or two


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A validated training request, as it is stored in the job's record and passed to RQ."""

    corpus: str | list[str]
    preset: str
    promote: str  # if_better, always or never
    warm_start: bool
    settings: dict[str, Any] = field(default_factory=dict)  # those that override the preset's
    model: str = DEFAULT  # the name of the model that is trained

    @property
    def corpora(self) -> list[str]:
        """Names of the corpora, one or several."""
        return [self.corpus] if isinstance(self.corpus, str) else self.corpus

    def train_config(self) -> TrainConfig:
        """Return the trainer's settings.

        Raises:
            ConfigError: A setting is out of range.
        """
        return TrainConfig(**self._settings_in(_TRAINING_SETTINGS))

    def layout(self) -> ItemLayout:
        """Return whether the corpora are lists, and how their items are found.

        Raises:
            ConfigError: A setting is wrong, or contradicts another one.
        """
        return ItemLayout.from_dict({k: v for k, v in self.settings.items() if k in _LAYOUT_SETTINGS})

    def fitted_config(self, corpora: Corpora) -> FittedConfig:
        """Return the trainer's settings as they fit the corpora: only those that the request does not set may change.

        A large list is fitted only where it is trained.

        Raises:
            UnknownCorpus: A corpus does not exist any more.
            ConfigError: A setting of the request cannot work with the corpora.
            TextError: The corpora cannot be trained on.
        """
        infos, sources = [corpora.get(name) for name in self.corpora], [corpora.source(name) for name in self.corpora]
        layout = detect_layout(sources, self.layout())
        if layout.is_list:
            if sum(info.n_bytes for info in infos) > _MAX_CHECKED_BYTES:
                return FittedConfig(self.train_config(), ())
            split, _, _ = read_items(sources, layout)
            return self.fit(split, len(split.alphabet))
        alphabet = "".join(sorted(set[str]().union(*(info.alphabet for info in infos))))
        lengths = [info.n_characters for info in infos]
        fitted = self.fit(TextSizes(lengths), len(alphabet))
        Vocabulary.of(alphabet, fitted.config.max_vocab)
        return fitted

    def fit(self, sizes: CorpusSizes, n_distinct: int, source: ModelConfig | None = None) -> FittedConfig:
        """Return the trainer's settings as they fit texts of these sizes, or a list.

        Args:
            sizes: Of the texts, or the list.
            n_distinct: The number of distinct characters.
            source: Of a warm start, what it begins with.

        Raises:
            ConfigError: A setting of the request cannot work with them.
            TextError: They cannot be trained on.
        """
        model = self.model_config(2, source)  # what fits does not depend on the vocabulary
        return fit_to_text(self.train_config(), model, sizes, n_distinct, explicit=self.settings)

    def model_config(self, vocab_size: int, source: ModelConfig | None = None) -> ModelConfig:
        """Return the network's shape: with a warm start that of its source, as far as the request sets no other.

        Raises:
            ConfigError: A setting is out of range.
        """
        settings = self._settings_in(_NETWORK_SETTINGS)
        if source is not None:
            shape = {name: getattr(source, name) for name in _NETWORK_SETTINGS}
            settings = {**shape, **{k: v for k, v in self.settings.items() if k in shape}}
        return ModelConfig(vocab_size=vocab_size, **settings)

    def _settings_in(self, names: set[str]) -> dict[str, Any]:
        return {name: value for name, value in {**PRESETS[self.preset], **self.settings}.items() if name in names}

    def as_dict(self) -> JsonObject:
        """Return the request as a flat JSON object, settings beside the other fields, without the default model."""
        own = {"corpus": self.corpus, "preset": self.preset, "promote": self.promote, "warm_start": self.warm_start}
        return {**({} if self.model == DEFAULT else {"model": self.model}), **own, **self.settings}

    @classmethod
    def from_dict(cls, value: JsonObject) -> Self:
        """Read what `as_dict` made, perhaps in an older version.

        Raises:
            ConfigError: It has a preset or a setting that this version does not know, or a value of a wrong type.
        """
        corpus = value.get("corpus")
        names = corpus if isinstance(corpus, list) else [corpus]
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError(field="corpus", value=corpus, expected="the name of a corpus, or several")
        if not isinstance(value.get("preset"), str) or not isinstance(value.get("promote"), str):
            raise ConfigError("is damaged", field="request", expected="strings as preset and promote")
        if type(value.get("warm_start")) is not bool:
            raise ConfigError(field="warm_start", value=value.get("warm_start"), expected="true or false")
        name = value.get("model", DEFAULT)
        if not isinstance(name, str) or not is_model_name(name):
            raise ConfigError(field="model", value=name, expected="the name of a model")
        own = {f.name for f in fields(cls)} - {"settings", "model"}
        settings = {k: v for k, v in value.items() if k not in own and k != "model"}
        if value["preset"] not in PRESETS:
            raise ConfigError(field="preset", value=value["preset"], expected=f"one of {', '.join(PRESETS)}")
        for setting in settings:
            if setting not in _SETTINGS:
                raise ConfigError("not a setting of this version; submit the job again without it", field=setting)
        return cls(**{f: value[f] for f in own}, settings=settings, model=name)


def validate(request: RetrainRequest, corpora: Corpora, checkpoint_dir: Path) -> JobRequest:
    """Validate a POST /retrain body with the checks of the trainer, so that no job fails for what is known now.

    Args:
        request: The body.
        corpora: The stored corpora.
        checkpoint_dir: The folder of all checkpoints, for a warm start.

    Raises:
        BadRequest: A field has a wrong value; the error names the field, the value and what was expected.
    """
    if request.preset not in PRESETS:
        raise BadRequest("preset", request.preset, f"one of {', '.join(PRESETS)}")
    for name, value in request.settings.items():
        if name not in _SETTINGS:
            known = ", ".join([*RetrainRequest.model_fields, *sorted(_SETTINGS)])
            raise BadRequest(name, value, f"one of the fields {known}", problem="no such field")
    settings = {**_declared_settings(request, corpora), **request.settings}
    job_request = JobRequest(
        request.corpus, request.preset, request.promote, request.warm_start, settings, request.model
    )
    with _config_errors_as_bad_requests():
        job_request.train_config()
        job_request.layout()
        job_request.model_config(2)
        _check_corpora(job_request, corpora)
        if request.warm_start:
            _check_warm_start(job_request, store_folder(checkpoint_dir, request.model))
    return job_request


def _declared_settings(request: RetrainRequest, corpora: Corpora) -> dict[str, Any]:
    """Return how the items of the corpora lie, if their uploads said so and the request does not overrule it.

    Raises:
        BadRequest: The corpora are not of one kind, and the request does not say how to read them.
    """
    known = corpora.names()
    infos = [corpora.get(name) for name in request.corpora if name in known]
    if not any(info.is_declared for info in infos) or request.settings.get("items") == "text":
        return {}
    if "items" in request.settings:
        layouts = [{k: v for k, v in info.layout.items() if k in _LIMITS} for info in infos]
        return layouts[0] if all(layout == layouts[0] for layout in layouts) else {}
    if any(info.layout != infos[0].layout for info in infos):
        kinds = ", ".join(f"{info.name}: {ItemLayout.from_dict(info.layout).description}" for info in infos)
        raise BadRequest(
            "items", None, "a value for all of them", problem=f"the corpora are of several kinds ({kinds})"
        )
    return infos[0].layout


@contextlib.contextmanager
def _config_errors_as_bad_requests() -> Iterator[None]:
    try:
        yield
    except ConfigError as e:
        raise BadRequest(e.field, e.value, e.expected, problem=e.problem) from e


def _check_corpora(request: JobRequest, corpora: Corpora) -> None:
    known = corpora.names()
    for name in request.corpora:
        if name not in known:
            raise BadRequest("corpus", name, f"one of {', '.join(known)}; PUT /corpora/NAME adds one")
    try:
        choose_workers(request.fitted_config(corpora).config, "cpu", world_size=1)
    except TextError as e:
        raise BadRequest("corpus", request.corpus, e.expected, problem=e.problem) from e


def _check_warm_start(request: JobRequest, checkpoint_dir: Path) -> None:
    """Check that the promoted checkpoint, if there is one, can be begun with."""
    try:
        path = registry.promoted_path(checkpoint_dir)
        source = file_format.load(path) if path is not None else None
    except CheckpointError as e:
        expected = "false, or a promoted checkpoint that can be read"
        raise BadRequest("warm_start", request.warm_start, expected, problem=str(e)) from e
    if source is not None:
        check_shape(source.config, request.model_config(2, source.config))
