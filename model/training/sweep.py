"""Many short runs over sizes, dropouts and rates; the best validation wins. Optuna chooses, prunes and remembers.

The study lives in a file or in Redis, so a sweep can be stopped and resumed, and several trainers can share one. Two
that ask at the same moment may be told the same settings: the later one puts them back and asks again.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from model.checkpoints import file_format
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, ModelError, TrainingError
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.progress import Progress

_REDIS = ("redis://", "rediss://", "unix://")
_HIDDEN, _LAYERS, _RATES = (128, 192, 256, 320, 384, 448, 512), 2, (1e-3, 1e-2)
_WARM_UP_RUNS = 3  # a median needs some runs to be the median of


@dataclass(frozen=True, slots=True)
class Row:
    """A run of a sweep that is over."""

    number: int
    val_loss: float  # nats per character, protocol (b), on the looks' sample unless the run was finished
    finished: bool  # not pruned
    settings: dict[str, Any]


class Sweep:
    """A study, and the budget of the runs that this process adds to it."""

    def __init__(
        self,
        corpus: Corpus,
        model: ModelConfig,
        config: TrainConfig,
        folder: Path,
        *,
        study: str = "sweep",
        storage: str = "",
        device: str = "cpu",
    ) -> None:
        """`storage` is a file's path or a Redis URL; without it, a file in `folder`/sweeps. Raised: ConfigError."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._corpus, self._model, self._config, self._device = corpus, model, config, device
        self._store = folder
        self._folder = folder / "sweeps" / study
        try:
            backend = _backend(storage or str(self._folder / "study.log"))
            self._study = optuna.create_study(
                study_name=study,
                storage=JournalStorage(backend),
                sampler=optuna.samplers.TPESampler(constant_liar=True),
                pruner=optuna.pruners.MedianPruner(_WARM_UP_RUNS, n_warmup_steps=2),
                load_if_exists=True,
            )
            about = self._study.user_attrs.get("corpus_sha256")
            if about not in (None, corpus.sha256):
                raise ConfigError(f"study: {study!r} is about another text (sha256 {about}); choose another name")
            self._study.set_user_attr("corpus_sha256", corpus.sha256)
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(_begin_with(model, config), skip_if_exists=True)
        except ModelError:
            raise
        except Exception as e:  # whatever the storage's library raises for a server or a disk that is not there
            raise ConfigError(f"storage: got {storage!r}, which cannot be used ({e})") from e

    def run(self, n_runs: int, minutes: float, watch: Callable[[Row], None] = lambda row: None) -> Path:
        """Up to n_runs runs within so many minutes; returns the best checkpoint of the whole study, in the store.

        An interrupt ends it with what there is. Raised: TrainingError when no run has been finished.
        """
        ends = time.monotonic() + minutes * 60
        try:
            for made in range(n_runs):
                left_s = ends - time.monotonic()
                share_s = left_s / (n_runs - made)
                if left_s <= 0 or share_s < 1:
                    break
                self._one(share_s / 60, watch)
        except KeyboardInterrupt:
            pass
        return self._winner()

    def leaderboard(self) -> list[Row]:
        """The runs that are over, the best first, finished ones before those that were pruned."""
        rows = []
        for t in self._study.get_trials(deepcopy=False):
            finished = t.state == TrialState.COMPLETE
            value = t.value if finished else min(t.intermediate_values.values(), default=math.inf)
            if finished or (t.state == TrialState.PRUNED and math.isfinite(value or math.inf)):
                rows.append(Row(t.number, float(value or math.inf), finished, dict(t.params)))
        return sorted(rows, key=lambda row: (not row.finished, row.val_loss))

    def _one(self, minutes: float, watch: Callable[[Row], None]) -> None:
        trial = self._ask()
        model, config = self._settings(trial, minutes)
        own = self._folder / f"{trial.number:04d}"
        looks = 0

        def look(progress: Progress) -> None:
            nonlocal looks
            if progress.val_loss is not None:
                looks += 1
                trial.report(progress.val_loss, looks)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            path = fit(self._corpus, model, config, own, device=self._device, watch=look)
            loss = file_format.load(path).val_loss
            trial.set_user_attr("checkpoint", str(path))
            self._study.tell(trial, loss)
        except (optuna.TrialPruned, TrainingError):
            self._study.tell(trial, state=TrialState.PRUNED)
            shutil.rmtree(own, ignore_errors=True)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        done = next((row for row in self.leaderboard() if row.number == trial.number), None)
        if done is not None:
            watch(done)

    def _ask(self) -> Trial:
        """A trial that no other process has: of two with the same settings the one with the lower number stays."""
        while True:
            trial = self._study.ask()
            _suggest(trial)
            same = [t for t in self._study.get_trials(deepcopy=False) if t.number < trial.number and _same(t, trial)]
            if not same:
                return trial
            self._study.tell(trial, state=TrialState.FAIL)

    def _settings(self, trial: Trial, minutes: float) -> tuple[ModelConfig, TrainConfig]:
        chosen = trial.params
        model = {**_values(self._model), **{k: v for k, v in chosen.items() if k in ("n_hidden", "n_layers")}}
        train = {**self._config.as_dict(), **{k: v for k, v in chosen.items() if k in ("lr", "dropout", "weight_drop")}}
        return ModelConfig(**model), TrainConfig(**{**train, "minutes": minutes})

    def _winner(self) -> Path:
        best = next((row for row in self.leaderboard() if row.finished), None)
        if best is None:
            raise TrainingError("the sweep has no finished run yet: give it more minutes, or fewer runs")
        (trial,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == best.number)
        return file_format.load(Path(trial.user_attrs["checkpoint"])).save(self._store)


def _begin_with(model: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    """The first run is what was asked for, as near as the space has it: a sweep is then never worse than that."""
    return {
        "n_hidden": min(_HIDDEN, key=lambda n: abs(n - model.n_hidden)),
        "n_layers": min(model.n_layers, _LAYERS),
        "dropout": min(round(round(config.dropout / 0.05) * 0.05, 2), 0.5),
        "weight_drop": min(round(config.weight_drop, 1), 0.4),
        "lr": min(max(config.lr, _RATES[0]), _RATES[1]),
    }


def _suggest(trial: Trial) -> None:
    """The space: what the figures in docs/decisions.md say matters."""
    trial.suggest_categorical("n_hidden", _HIDDEN)
    trial.suggest_int("n_layers", 1, _LAYERS)
    trial.suggest_float("dropout", 0.0, 0.5, step=0.05)
    trial.suggest_float("weight_drop", 0.0, 0.4, step=0.1)
    trial.suggest_float("lr", *_RATES, log=True)


def _same(other: FrozenTrial, trial: Trial) -> bool:
    return other.state != TrialState.FAIL and other.params == trial.params


def _values(model: ModelConfig) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ("vocab_size", "n_hidden", "n_layers", "n_embed", "cell")}


def _backend(storage: str) -> JournalFileBackend | JournalRedisBackend:
    if storage.startswith(_REDIS):
        with warnings.catch_warnings():  # "experimental" since 2023; two processes on it are tested here
            warnings.simplefilter("ignore", ExperimentalWarning)
            return JournalRedisBackend(storage)
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalFileBackend(str(path))
