"""A sweep: many short runs over sizes, windows, dropouts and learning rates; the best validation loss wins.

Optuna suggests the settings, prunes bad runs and stores the study in a file or in Redis, so a sweep can be interrupted
and continued, and several processes can share one. Two processes that ask at the same moment may get the same settings:
the later one gives its trial up and asks again.

A trial whose process was killed stays "running" in the study. Every process looks for such trials before it asks for a
new one, and puts their settings back into the queue. It recognizes them by the lock of the run's folder, which the
operating system releases with the process, or, on another machine, by a heartbeat that is too old.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend, JournalStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from model.atomic_files import folder_lock, is_locked
from model.checkpoints import file_format
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError, ModelError, TrainingError
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.run_folder import Progress

STUDY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Names of studies. Each names a folder, too."""

_REDIS = ("redis://", "rediss://", "unix://")
_STORAGES = "the path of a file, sqlite:///FILE, or a Redis URL: redis://, rediss:// or unix://"
_SQLITE = "sqlite:///"
_SQLITE_TIMEOUT_S = 60  # to wait for another process that writes to the study
_HIDDEN, _MAX_LAYERS, _LEARNING_RATES = (128, 192, 256, 320, 384, 448, 512), 2, (1e-3, 1e-2)
_WINDOW_STEP, _LONGEST_WINDOW = 8, 128  # characters
_MIN_RUNS_TO_PRUNE = 3  # a median of fewer runs means little
_MIN_VALIDATIONS_TO_PRUNE = 2
_MIN_RUN_S = 1.0
_HEARTBEAT_S = 10.0
_ABANDONED_S = 300.0  # without a heartbeat: longer than the last validation of a run takes


@dataclass(frozen=True, slots=True)
class SweepRun:
    """A run of a sweep that has ended."""

    number: int
    val_loss: float  # nats per character, stateful protocol; of a pruned run, on a sample of the validation part
    finished: bool  # neither pruned nor interrupted
    settings: dict[str, Any]
    checkpoint: Path | None = None  # a pruned run has none


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
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """Open or create the study.

        Args:
            corpus: The text.
            model: The settings of the network; the study varies some of them.
            config: The settings of the training; the study varies some of them.
            folder: The folder of checkpoints; runs are in its folder sweeps.
            study: The name; an existing study of this name is continued.
            storage: The path of a file, sqlite:///FILE or a Redis URL; empty: a file in the study's folder.
            device: "cpu" or "cuda".
            origin: As in `fit`.

        Raises:
            ConfigError: The storage is of another kind or cannot be used, or the study is about another text.
        """
        check_study_name(study)
        check_storage(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._corpus, self._model, self._config, self._device = corpus, model, config, device
        self._checkpoint_folder = folder
        self._origin = origin
        self._folder = folder / "sweeps" / study
        try:
            self._study = optuna.create_study(
                study_name=study,
                storage=_open_storage(storage or str(self._folder / "study.log")),
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
                initial = _initial_settings(model, config, self._longest_window())
                self._study.enqueue_trial(initial, skip_if_exists=True)
        except ModelError:
            raise
        except Exception as e:  # whatever the storage's library raises for a server or a disk that is unavailable
            public_url = without_password(storage)
            problem = f"got {public_url!r}, which cannot be used ({without_password(str(e))})"
            raise ConfigError(problem, field="storage", value=public_url) from e

    def run(
        self,
        n_runs: int,
        minutes: float,
        on_run: Callable[[SweepRun], None] = lambda _run: None,
        is_interrupted: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Add up to `n_runs` runs within so many minutes; an interrupt ends the sweep early.

        Args:
            n_runs: Runs that share the time equally.
            minutes: The budget of all of them.
            on_run: Called after each run.
            is_interrupted: Called between steps and between runs: whether the sweep is to end now. The checkpoint of
                the interrupted run counts, and its settings are tried again when the study is continued.

        Returns:
            The best checkpoint of the whole study, in the folder of checkpoints.

        Raises:
            TrainingError: The study has no run with a checkpoint.
        """
        end = time.monotonic() + minutes * 60
        try:
            for n_done in range(n_runs):
                remaining_s = end - time.monotonic()
                run_s = remaining_s / (n_runs - n_done)
                if remaining_s <= 0 or run_s < _MIN_RUN_S or is_interrupted():
                    break
                self._requeue_abandoned()
                self._run_trial(run_s / 60, on_run, is_interrupted)
        except KeyboardInterrupt:
            pass
        return self._save_best()

    def leaderboard(self) -> list[SweepRun]:
        """Return the runs that have ended, the best first, those with a checkpoint before pruned ones."""
        runs = []
        for t in self._study.get_trials(deepcopy=False):
            finished, checkpoint = t.state == TrialState.COMPLETE, t.user_attrs.get("checkpoint")
            if checkpoint and t.state in (TrialState.COMPLETE, TrialState.PRUNED):
                loss = t.value if finished else t.user_attrs["val_loss"]
            elif t.state == TrialState.PRUNED:
                loss = min(t.intermediate_values.values(), default=math.inf)
            else:
                continue
            if loss is not None and math.isfinite(loss):
                path = Path(checkpoint) if checkpoint else None
                runs.append(SweepRun(t.number, float(loss), finished, dict(t.params), path))
        return sorted(runs, key=lambda run: (run.checkpoint is None, run.val_loss))

    def _run_trial(
        self, minutes: float, on_run: Callable[[SweepRun], None], is_interrupted: Callable[[], bool]
    ) -> None:
        trial = self._new_trial()
        folder = self._folder / f"{trial.number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            trial.set_user_attr("host", os.uname().nodename)  # from now on the lock says whether this process lives
            self._train(trial, folder, minutes, is_interrupted)
        ended = next((run for run in self.leaderboard() if run.number == trial.number), None)
        if ended is not None:
            on_run(ended)
        if is_interrupted():
            raise KeyboardInterrupt

    def _train(self, trial: Trial, folder: Path, minutes: float, is_interrupted: Callable[[], bool]) -> None:
        """Train with the settings of a trial, and write its result into the study."""
        model, config = self._settings(trial, minutes)
        n_validations, interrupted, heartbeat_at = 0, False, -math.inf

        def on_progress(progress: Progress) -> None:
            nonlocal n_validations, interrupted, heartbeat_at
            if time.monotonic() - heartbeat_at > _HEARTBEAT_S:
                heartbeat_at = time.monotonic()
                trial.set_user_attr("heartbeat", time.time())
            if is_interrupted():
                interrupted = True
                raise KeyboardInterrupt
            if progress.val_loss is not None:
                n_validations += 1
                trial.report(progress.val_loss, n_validations)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            path = fit(
                self._corpus,
                model,
                config,
                folder,
                device=self._device,
                on_progress=on_progress,
                origin=self._origin,
            )
            loss = file_format.load(path).val_loss
            trial.set_user_attr("checkpoint", str(path))
            if interrupted:
                trial.set_user_attr("val_loss", loss)
                self._end(trial, TrialState.PRUNED)
                self._study.enqueue_trial(trial.params)
            else:
                self._end(trial, TrialState.COMPLETE, loss)
        except UpdateFinishedTrialError:
            pass  # this process was silent for so long that another one has put the settings back into the queue
        except (optuna.TrialPruned, TrainingError):
            self._end(trial, TrialState.PRUNED)
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:
            self._end(trial, TrialState.FAIL)
            self._study.enqueue_trial(trial.params)
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _end(self, trial: Trial, state: TrialState, loss: float | None = None) -> None:
        self._study.tell(trial, loss, state=state, skip_if_finished=True)

    def _requeue_abandoned(self) -> None:
        """Mark the trials of processes that were killed as failed, and put their settings back into the queue."""
        for t in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            folder = self._folder / f"{t.number:04d}"
            if not _is_abandoned(t, folder):
                continue
            try:
                self._study.tell(t.number, state=TrialState.FAIL)
            except (UpdateFinishedTrialError, ValueError):
                continue  # another process was faster
            self._study.enqueue_trial(t.params)
            shutil.rmtree(folder, ignore_errors=True)

    def _new_trial(self) -> Trial:
        """Ask for settings that no other process has: of two equal trials the one with the lower number stays."""
        while True:
            trial = self._study.ask()
            _suggest(trial, self._longest_window())
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
        searched = ("seq_length", "lr", "dropout", "weight_drop")
        train = {name: trial.params[name] for name in searched if name in trial.params}
        return replace(self._model, **model), replace(self._config, **train, minutes=minutes)

    def _longest_window(self) -> int:
        """Return the longest window that is tried; 0: none is, since those of a list hold its items."""
        if self._corpus.items is not None:
            return 0
        longest = min(_LONGEST_WINDOW, len(self._corpus.train) // self._config.batch_size - 1)
        return longest // _WINDOW_STEP * _WINDOW_STEP

    def _save_best(self) -> Path:
        best = next((run for run in self.leaderboard() if run.checkpoint is not None), None)
        if best is None or best.checkpoint is None:
            raise TrainingError("the sweep has no finished run yet: give it more minutes, or fewer runs")
        return file_format.load(best.checkpoint).save(self._checkpoint_folder)


def check_study_name(study: str) -> None:
    """Check the name of a study.

    Raises:
        ConfigError: It cannot be the name of a folder.
    """
    if not re.fullmatch(STUDY_NAME, study):
        expected = "letters, digits, '.', '_' and '-', at most 64 and a letter or digit first"
        raise ConfigError(field="study", value=study, expected=expected)


def check_storage(storage: str) -> None:
    """Check that the storage of a study is of a kind that is supported; it is not opened.

    Raises:
        ConfigError: It is a URL of another kind.
    """
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", storage) is not None
    is_sqlite = storage.startswith(_SQLITE) and len(storage) > len(_SQLITE)
    if is_url and not is_sqlite and not storage.startswith(_REDIS):
        raise ConfigError(field="storage", value=without_password(storage), expected=_STORAGES)


def without_password(text: str) -> str:
    """Return a text in which the user names and passwords of URLs are replaced by dots."""
    return re.sub(r"://[^@/\s]*@", "://...@", text)


def _initial_settings(model: ModelConfig, config: TrainConfig, longest_window: int) -> dict[str, Any]:
    """Return the requested settings, rounded to the search space: the first run, so that no sweep ends worse."""
    window = max(_WINDOW_STEP, round(config.seq_length / _WINDOW_STEP) * _WINDOW_STEP)
    return {
        **({"seq_length": min(window, longest_window)} if longest_window else {}),
        "n_hidden": min(_HIDDEN, key=lambda n: abs(n - model.n_hidden)),
        "n_layers": min(model.n_layers, _MAX_LAYERS),
        "dropout": min(round(round(config.dropout / 0.05) * 0.05, 2), 0.5),
        "weight_drop": min(round(config.weight_drop, 1), 0.4),
        "lr": min(max(config.lr, _LEARNING_RATES[0]), _LEARNING_RATES[1]),
    }


def _suggest(trial: Trial, longest_window: int) -> None:
    """Define the search space: the settings that matter most by the figures in docs/decisions."""
    if longest_window:
        trial.suggest_int("seq_length", _WINDOW_STEP, longest_window, step=_WINDOW_STEP)
    trial.suggest_categorical("n_hidden", _HIDDEN)
    trial.suggest_int("n_layers", 1, _MAX_LAYERS)
    trial.suggest_float("dropout", 0.0, 0.5, step=0.05)
    trial.suggest_float("weight_drop", 0.0, 0.4, step=0.1)
    trial.suggest_float("lr", *_LEARNING_RATES, log=True)


def _has_settings_of(trial: Trial, other: FrozenTrial) -> bool:
    was_interrupted = other.state == TrialState.PRUNED and "checkpoint" in other.user_attrs
    return other.state != TrialState.FAIL and not was_interrupted and other.params == trial.params


def _is_abandoned(trial: FrozenTrial, folder: Path) -> bool:
    """Whether the process of a running trial has ended.

    Args:
        trial: The trial.
        folder: The folder of its run, which exists on the machine that runs it.
    """
    if trial.user_attrs.get("host") == os.uname().nodename and folder.is_dir():
        return not is_locked(folder)
    started = trial.datetime_start.timestamp() if trial.datetime_start is not None else math.inf
    last_sign = max(started, float(trial.user_attrs.get("heartbeat", 0.0)))
    return time.time() - last_sign > _ABANDONED_S


def _open_storage(storage: str) -> BaseStorage:
    if storage.startswith(_REDIS):
        with warnings.catch_warnings():  # "experimental" since 2023; two processes on it are tested here
            warnings.simplefilter("ignore", ExperimentalWarning)
            return JournalStorage(JournalRedisBackend(storage))
    path = Path(storage.removeprefix(_SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    if storage.startswith(_SQLITE):
        return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": _SQLITE_TIMEOUT_S}})
    return JournalStorage(JournalFileBackend(str(path)))
