"""A sweep: many short runs over sizes, dropouts and learning rates; the best validation loss wins.

Optuna suggests the settings, prunes bad runs and stores the study in a file or in Redis, so a sweep can be interrupted
and continued, and several processes can share one. Two processes that ask at the same moment may get the same settings:
the later one gives its trial up and asks again.
"""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from model.training.run_folder import Progress

_REDIS = ("redis://", "rediss://", "unix://")
_HIDDEN, _MAX_LAYERS, _LEARNING_RATES = (128, 192, 256, 320, 384, 448, 512), 2, (1e-3, 1e-2)
_MIN_RUNS_TO_PRUNE = 3  # a median of fewer runs means little
_MIN_VALIDATIONS_TO_PRUNE = 2
_MIN_RUN_S = 1.0


@dataclass(frozen=True, slots=True)
class SweepRun:
    """A run of a sweep that has ended."""

    number: int
    val_loss: float  # nats per character, stateful protocol; of a pruned run, on a sample of the validation part
    finished: bool  # not pruned
    settings: dict[str, Any]


class Sweep:
    """An Optuna study, and the runs that this process adds to it."""

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
        """Open or create the study.

        Args:
            corpus: The text.
            model: The settings of the network; the study varies some of them.
            config: The settings of the training; the study varies some of them.
            folder: The folder of checkpoints; runs are in its folder sweeps.
            study: The name; an existing study of this name is continued.
            storage: The path of a file or a Redis URL; empty: a file in the study's folder.
            device: "cpu" or "cuda".

        Raises:
            ConfigError: The storage cannot be used, or the study is about another text.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._corpus, self._model, self._config, self._device = corpus, model, config, device
        self._checkpoint_folder = folder
        self._folder = folder / "sweeps" / study
        try:
            backend = _backend(storage or str(self._folder / "study.log"))
            self._study = optuna.create_study(
                study_name=study,
                storage=JournalStorage(backend),
                sampler=optuna.samplers.TPESampler(constant_liar=True),
                pruner=optuna.pruners.MedianPruner(_MIN_RUNS_TO_PRUNE, n_warmup_steps=_MIN_VALIDATIONS_TO_PRUNE),
                load_if_exists=True,
            )
            sha256 = self._study.user_attrs.get("corpus_sha256")
            if sha256 not in (None, corpus.sha256):
                problem = f"{study!r} is a study of another text (sha256 {sha256}); choose another name"
                raise ConfigError(problem, field="study", value=study)
            self._study.set_user_attr("corpus_sha256", corpus.sha256)
            if not self._study.get_trials(deepcopy=False):
                self._study.enqueue_trial(_initial_settings(model, config), skip_if_exists=True)
        except ModelError:
            raise
        except Exception as e:  # whatever the storage's library raises for a server or a disk that is unavailable
            raise ConfigError(f"got {storage!r}, which cannot be used ({e})", field="storage", value=storage) from e

    def run(self, n_runs: int, minutes: float, on_run: Callable[[SweepRun], None] = lambda _run: None) -> Path:
        """Add up to `n_runs` runs within so many minutes; an interrupt ends the sweep early.

        Args:
            n_runs: Runs that share the time equally.
            minutes: The budget of all of them.
            on_run: Called after each run.

        Returns:
            The best checkpoint of the whole study, in the folder of checkpoints.

        Raises:
            TrainingError: The study has no finished run.
        """
        end = time.monotonic() + minutes * 60
        try:
            for n_done in range(n_runs):
                remaining_s = end - time.monotonic()
                run_s = remaining_s / (n_runs - n_done)
                if remaining_s <= 0 or run_s < _MIN_RUN_S:
                    break
                self._run_trial(run_s / 60, on_run)
        except KeyboardInterrupt:
            pass
        return self._save_best()

    def leaderboard(self) -> list[SweepRun]:
        """Return the runs that have ended, the best first, finished ones before pruned ones."""
        runs = []
        for t in self._study.get_trials(deepcopy=False):
            finished = t.state == TrialState.COMPLETE
            value = t.value if finished else min(t.intermediate_values.values(), default=math.inf)
            if finished or (t.state == TrialState.PRUNED and math.isfinite(value or math.inf)):
                runs.append(SweepRun(t.number, float(value or math.inf), finished, dict(t.params)))
        return sorted(runs, key=lambda run: (not run.finished, run.val_loss))

    def _run_trial(self, minutes: float, on_run: Callable[[SweepRun], None]) -> None:
        trial = self._new_trial()
        model, config = self._settings(trial, minutes)
        folder = self._folder / f"{trial.number:04d}"
        n_validations = 0

        def report(progress: Progress) -> None:
            nonlocal n_validations
            if progress.val_loss is not None:
                n_validations += 1
                trial.report(progress.val_loss, n_validations)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            path = fit(self._corpus, model, config, folder, device=self._device, on_progress=report)
            loss = file_format.load(path).val_loss
            trial.set_user_attr("checkpoint", str(path))
            self._study.tell(trial, loss)
        except (optuna.TrialPruned, TrainingError):
            self._study.tell(trial, state=TrialState.PRUNED)
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            self._study.tell(trial, state=TrialState.FAIL)
            raise
        ended = next((run for run in self.leaderboard() if run.number == trial.number), None)
        if ended is not None:
            on_run(ended)

    def _new_trial(self) -> Trial:
        """Ask for settings that no other process has: of two equal trials the one with the lower number stays."""
        while True:
            trial = self._study.ask()
            _suggest(trial)
            same = [
                t
                for t in self._study.get_trials(deepcopy=False)
                if t.number < trial.number and _has_settings_of(trial, t)
            ]
            if not same:
                return trial
            self._study.tell(trial, state=TrialState.FAIL)

    def _settings(self, trial: Trial, minutes: float) -> tuple[ModelConfig, TrainConfig]:
        model = {name: trial.params[name] for name in ("n_hidden", "n_layers") if name in trial.params}
        train = {name: trial.params[name] for name in ("lr", "dropout", "weight_drop") if name in trial.params}
        return replace(self._model, **model), replace(self._config, **train, minutes=minutes)

    def _save_best(self) -> Path:
        best = next((run for run in self.leaderboard() if run.finished), None)
        if best is None:
            raise TrainingError("the sweep has no finished run yet: give it more minutes, or fewer runs")
        (trial,) = (t for t in self._study.get_trials(deepcopy=False) if t.number == best.number)
        return file_format.load(Path(trial.user_attrs["checkpoint"])).save(self._checkpoint_folder)


def _initial_settings(model: ModelConfig, config: TrainConfig) -> dict[str, Any]:
    """Return the requested settings, rounded to the search space: the first run, so that no sweep ends worse."""
    return {
        "n_hidden": min(_HIDDEN, key=lambda n: abs(n - model.n_hidden)),
        "n_layers": min(model.n_layers, _MAX_LAYERS),
        "dropout": min(round(round(config.dropout / 0.05) * 0.05, 2), 0.5),
        "weight_drop": min(round(config.weight_drop, 1), 0.4),
        "lr": min(max(config.lr, _LEARNING_RATES[0]), _LEARNING_RATES[1]),
    }


def _suggest(trial: Trial) -> None:
    """Define the search space: the settings that matter most by the figures in docs/decisions."""
    trial.suggest_categorical("n_hidden", _HIDDEN)
    trial.suggest_int("n_layers", 1, _MAX_LAYERS)
    trial.suggest_float("dropout", 0.0, 0.5, step=0.05)
    trial.suggest_float("weight_drop", 0.0, 0.4, step=0.1)
    trial.suggest_float("lr", *_LEARNING_RATES, log=True)


def _has_settings_of(trial: Trial, other: FrozenTrial) -> bool:
    return other.state != TrialState.FAIL and other.params == trial.params


def _backend(storage: str) -> JournalFileBackend | JournalRedisBackend:
    if storage.startswith(_REDIS):
        with warnings.catch_warnings():  # "experimental" since 2023; two processes on it are tested here
            warnings.simplefilter("ignore", ExperimentalWarning)
            return JournalRedisBackend(storage)
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalFileBackend(str(path))
