"""One training, from its request to its result: read the corpora, fit, decide, promote. No Redis and no queue here.

A training works in a run folder of its own. Only complete checkpoints are copied from there to the folder that the
service reads. A bootstrap job, which a start queues because no model of its text is served, promotes each better
checkpoint at once; any other job promotes at most its last one.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from model.atomic_files import atomic_write
from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError, PromotionConflict, StorageError, TrainingError
from model.evaluation.advice import TrainingSetup, advise_on_final_loss, advise_on_losses, advise_on_setup
from model.evaluation.validation_sample import Validation
from model.export.report import ReportExtent, to_report
from model.text.corpus import Corpus, CorpusSizes
from model.text.fitting import FittedConfig
from model.text.items.layout import ItemLayout
from model.text.memory_map import read_corpora
from model.training.loop import fit
from model.training.run_folder import Progress, RunFolder
from service.jobs import promotion_policy
from service.jobs.record import MAX_SAMPLES, MAX_VALIDATIONS, Decision, JobResult, JsonObject
from service.jobs.request import JobRequest
from service.store.corpora import Corpora
from service.store.promotions import Promotions, change_promotion

SAMPLE_CHARS = 240
_TEXTS = "texts"  # in the run folder: the ids of a large corpus
_PROGRESS_INTERVAL_S = 0.5
_PROMOTION_CONFLICT = (
    "another checkpoint was promoted at the same time, so this one was not; POST /models/ID/promote can promote it"
)
_SUPERSEDED = (
    "another checkpoint was promoted, or one was rolled back: this job promotes nothing more until its end, where its "
    "best checkpoint is compared with the promoted one"
)
_REPORT = ReportExtent(chars=1000, training_chars=500_000, seconds=5)
_INTERIM_CHECKPOINTS = 2  # of a bootstrap job: the promoted one and its predecessor


class JobLog(Protocol):
    """Where a training reports. No method raises an error."""

    def put(self, **fields: Any) -> None:
        """Write fields of the job's record."""
        ...

    def emit(self, name: str, data: JsonObject) -> None:
        """Append an event to the job's stream."""
        ...

    def note(self, text: str) -> None:
        """Append a note."""
        ...


@dataclass(frozen=True, slots=True)
class JobEnvironment:
    """The folders and the device that a job uses."""

    checkpoint_dir: Path  # the store of the model that is trained
    run_dir: Path  # of this job alone
    corpora: Corpora
    device: str
    keep_checkpoints: int


@dataclass(slots=True)
class Training:
    """A job's training while it runs."""

    request: JobRequest
    environment: JobEnvironment
    log: JobLog
    is_bootstrap: bool  # no model of the text existed before: better checkpoints are promoted as they come
    is_cancelled: Callable[[], bool]
    promotions: Promotions
    _validations: list[Validation] = field(default_factory=list)
    _samples: list[JsonObject] = field(default_factory=list)
    _progress_at: float = -math.inf  # when progress was reported last
    _interim: list[Path] = field(default_factory=list)  # checkpoints that this job promoted while it ran
    _setup: TrainingSetup | None = None
    _version: int = 0  # of promoted.json, as a bootstrap job found it, or left it at its last promotion

    def run(self) -> JobResult:
        """Train, decide and promote.

        Raises:
            ModelError: The training cannot work, and would not at another attempt.
            ServiceError: The same, for a reason that the service found.
        """
        self._version = _promotion_version(self.environment.checkpoint_dir)
        config, corpus, network, source = self._prepare()
        path: Path | None
        try:
            path = self._fit(config, corpus, network, source)
        except KeyboardInterrupt:
            path = self._best_checkpoint()
        except TrainingError:
            best = self._best_checkpoint()
            if best is not None:
                kept = registry.register(best, self.environment.checkpoint_dir)
                self.log.note(f"the best checkpoint before the error is kept as {kept.name}; it is not promoted")
            raise
        if path is None:
            return JobResult(cancelled=True)
        checkpoint_dir = self.environment.checkpoint_dir
        version = _promotion_version(checkpoint_dir)
        self._is_superseded(version)
        registered = registry.register(path, checkpoint_dir)
        info = file_format.read_info(registered)
        self._advise(final_loss=float(info.run["val_loss"]))
        self._write_report(registered, corpus)
        cancelled = self.is_cancelled()
        if self.is_bootstrap and self._interim:
            decision = Decision(True, "there was no model of this text before this job")
        elif cancelled:
            decision = Decision(False, "the job was cancelled; its best checkpoint can be promoted by hand")
        else:
            decision = promotion_policy.decide(self.request.promote, registered, corpus, self.environment.device)
        if decision.promoted and self._promote(registered, version) is None:
            decision = Decision(False, _PROMOTION_CONFLICT)
        self._remove_unused_files(registered)
        return JobResult(cancelled, info.as_dict(), decision)

    def _prepare(self) -> tuple[TrainConfig, Corpus, ModelConfig, Checkpoint | None]:
        """Read the corpora and settle the network's shape and the weights to begin with."""
        source = self._warm_start_source()
        shape = source.config if source is not None else None
        sources = [self.environment.corpora.source(name) for name in self.request.corpora]
        fitted = FittedConfig(self.request.train_config(), ())

        def config_of(sizes: CorpusSizes, n_distinct: int) -> TrainConfig:
            nonlocal fitted
            fitted = self.request.fit(sizes, n_distinct, shape)
            return fitted.config

        corpus = read_corpora(sources, config_of, self.environment.run_dir / _TEXTS, layout=self._layout())
        config = fitted.config
        for note in (*corpus.notes, *fitted.notes):
            self.log.note(note)
        model = self.request.model_config(len(corpus.vocab), shape)
        self.log.note(
            f"{corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; {model.cell} {model.n_layers} x "
            f"{model.n_hidden}, {model.n_parameters:,} parameters"
        )
        self._setup = TrainingSetup.of(model, config, corpus)
        self._advise()
        return config, corpus, model, source

    def _layout(self) -> ItemLayout:
        """Return how the corpora are read: as an earlier attempt read them, or as the request says."""
        folder = RunFolder(self.environment.run_dir)
        if (folder.path / "run.json").exists():
            with contextlib.suppress(CheckpointError, ConfigError):
                return ItemLayout.from_dict(folder.settings()["metadata"].get("layout", {"items": "text"}))
        return self.request.layout()

    def _warm_start_source(self) -> Checkpoint | None:
        """Return the promoted checkpoint if the training begins with its weights."""
        if not self.request.warm_start:
            return None
        path = registry.promoted_path(self.environment.checkpoint_dir)
        if path is None:
            self.log.note("warm_start: no checkpoint has been promoted yet; training starts from random weights")
            return None
        self.log.note(f"warm_start: training starts from the weights of {path.name}")
        return file_format.load(path)

    def _fit(self, config: TrainConfig, corpus: Corpus, model: ModelConfig, source: Checkpoint | None) -> Path:
        """Train. A later attempt resumes from the last resume state if there is one that can be used."""
        folder = self.environment.run_dir

        def fit_run(resume: bool) -> Path:
            return fit(
                corpus,
                model,
                config,
                folder,
                device=self.environment.device,
                on_progress=self._on_progress,
                run=folder,
                resume=resume,
                warm_start=source,
                sample_chars=SAMPLE_CHARS,
                metadata={"layout": corpus.layout.as_dict()},
                origin={"corpus": " + ".join(self.request.corpora), "preset": self.request.preset},
            )

        if (folder / "run.json").exists():
            try:
                self.log.note("resuming from the last resume state")
                self._validations = RunFolder(folder).validations()
                return fit_run(resume=True)
            except (ConfigError, CheckpointError, StorageError) as e:
                self.log.note(f"cannot resume, starting again from step 0: {e}")
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.is_dir():
                if path.name != _TEXTS:
                    shutil.rmtree(path)
            else:
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        self._validations.clear()
        return fit_run(resume=False)

    def _on_progress(self, progress: Progress) -> None:
        """Report progress, and end the training if the job was cancelled."""
        now = time.monotonic()
        validation = progress.validation
        if validation is not None:
            self._on_validation(progress, validation)
        if validation is not None or now - self._progress_at > _PROGRESS_INTERVAL_S:
            self._progress_at = now
            reported = _progress(progress)
            self.log.put(progress=reported)
            self.log.emit("progress", reported)
        if self.is_cancelled():
            raise KeyboardInterrupt

    def _on_validation(self, progress: Progress, validation: Validation) -> None:
        self._validations = [v for v in self._validations if v.step < validation.step] + [validation]
        self.log.put(validations=[_rounded(v) for v in self._validations[-MAX_VALIDATIONS:]])
        self.log.emit("validation", _rounded(validation))
        promotes_at_once = self.is_bootstrap and self.request.promote != "never"
        if validation.is_best and progress.best_checkpoint is not None and promotes_at_once:
            self._promote_interim(progress.best_checkpoint, validation.val_loss)
        if progress.sample is not None:
            sample = {"step": progress.step, "text": progress.sample}
            self._samples.append(sample)
            self.log.put(samples=self._samples[-MAX_SAMPLES:])
            self.log.emit("sample", sample)
        self._advise()

    def _advise(self, final_loss: float | None = None) -> None:
        """Report advice on the setup, the losses so far and the loss of the whole validation part, if it is known."""
        if self._setup is not None:
            advice = [*advise_on_setup(self._setup), *advise_on_losses(self._setup, self._validations)]
            if final_loss is not None and self._validations:
                advice += advise_on_final_loss(min(v.val_loss for v in self._validations), final_loss)
            self.log.put(advice=[asdict(a) for a in advice])

    def _promote_interim(self, path: Path, val_loss: float) -> None:
        """Promote a better checkpoint of a bootstrap job while the training goes on."""
        checkpoint_dir = self.environment.checkpoint_dir
        if self._is_superseded(_promotion_version(checkpoint_dir)):
            return
        if self._promoted_loss(file_format.read_info(path).run["corpus_sha256"]) <= val_loss:
            return  # promoted by an earlier attempt of this job
        registered = registry.register(path, checkpoint_dir)
        version = self._promote(registered, self._version)
        if version is None:
            self.log.note(_PROMOTION_CONFLICT)
            return
        self._version = version
        self.log.emit("promoted", {"name": registered.name})
        self._interim = [p for p in self._interim if p != registered] + [registered]
        for old in self._interim[:-_INTERIM_CHECKPOINTS]:
            old.unlink(missing_ok=True)
        self._interim = self._interim[-_INTERIM_CHECKPOINTS:]

    def _write_report(self, path: Path, corpus: Corpus) -> None:
        """Write the report on a checkpoint beside it, in seconds. Its failure is a note: the model is as good."""
        if self.is_cancelled():
            return
        try:
            metrics = RunFolder(self.environment.run_dir).metrics()
            report = to_report(path, file_format.load(path), corpus, metrics, _REPORT)
            with atomic_write(registry.report_path(path)) as file:
                file.write(report)
        except KeyboardInterrupt:  # the job was cancelled in the meantime
            pass
        except Exception as e:
            self.log.note(f"the report on {path.name} could not be made: {e!r}")

    def _is_superseded(self, version: int) -> bool:
        """Whether somebody else has decided what is served since this bootstrap job did; then it is one no more."""
        if self.is_bootstrap and version != self._version:
            self.is_bootstrap = False
            self.log.note(_SUPERSEDED)
        return not self.is_bootstrap

    def _promote(self, path: Path, version: int) -> int | None:
        """Promote a checkpoint. Return the version of promoted.json then; None if another process has changed it."""
        try:
            return change_promotion(self.promotions, version, partial(registry.promote, path), self.request.model)
        except PromotionConflict:
            return None

    def _promoted_loss(self, corpus_sha256: str) -> float:
        """Return the validation loss of the promoted checkpoint; infinity if none of this text can be used."""
        try:
            promoted = registry.promoted_path(self.environment.checkpoint_dir)
            run = file_format.read_info(promoted).run if promoted is not None else {}
        except CheckpointError:
            return math.inf
        return float(run["val_loss"]) if run.get("corpus_sha256") == corpus_sha256 else math.inf

    def _best_checkpoint(self) -> Path | None:
        """Return the run's best checkpoint so far; the trainer has removed the others."""
        paths = [p for p in registry.checkpoint_paths(self.environment.run_dir) if p.name.startswith("val")]
        return paths[0] if paths else None

    def _remove_unused_files(self, registered: Path) -> None:
        """Remove superseded interim checkpoints, the oldest checkpoints, and the run folder."""
        promoted = registry.promotion_history(self.environment.checkpoint_dir)[:2]
        for path in self._interim:
            if path != registered and path.name not in promoted:
                path.unlink(missing_ok=True)
        registry.prune(self.environment.checkpoint_dir, self.environment.keep_checkpoints)
        shutil.rmtree(self.environment.run_dir, ignore_errors=True)


def _promotion_version(folder: Path) -> int:
    """The version of promoted.json; 0 if it cannot be used, which the promotion will say."""
    try:
        return registry.promotion_version(folder)
    except CheckpointError:
        return 0


def _rounded(validation: Validation) -> JsonObject:
    return {**asdict(validation), "elapsed_s": round(validation.elapsed_s, 1)}


def _progress(progress: Progress) -> JsonObject:
    remaining_s = progress.remaining_s
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "epochs": round(progress.epochs, 3),
        "train_loss": progress.train_loss,
        "best_val_loss": progress.best_val_loss,
        "lr": progress.lr,
        "chars_per_s": round(progress.chars_per_s),
        "elapsed_s": round(progress.elapsed_s, 1),
        "remaining_s": round(remaining_s, 1) if remaining_s is not None else None,
    }
