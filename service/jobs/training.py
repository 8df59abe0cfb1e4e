"""One training, from its request to its result: corpus -> fit -> judge -> promote. It knows no Redis and no queue.

A run works in a folder of its own; only a whole checkpoint is brought from there to where the service reads. While
there is no other model to serve, each better checkpoint is promoted as it comes; else the last one, if it may be.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.errors import CheckpointError, ConfigError, StorageError
from model.evaluation.advice import TrainingSetup, advise_on_final_loss, advise_on_losses, advise_on_setup
from model.evaluation.validation import Validation
from model.text.corpus import Corpus
from model.training.loop import fit
from model.training.run_folder import Progress, RunFolder
from service.jobs.promotion_policy import decision_of, judge
from service.jobs.request import settings_of
from service.store.corpora import Corpora

SAMPLE_CHARS = 240
_TELL_S = 0.5  # between two words of progress


class Log(Protocol):
    """Where a training tells what it does. None of it may fail."""

    def put(self, **fields: Any) -> None: ...
    def emit(self, name: str, data: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are on this machine."""

    checkpoints: Path
    run: Path  # this job's own
    corpora: Corpora
    device: str
    keep_models: int


@dataclass(slots=True)
class Training:
    """What goes on while a job runs."""

    wanted: dict[str, Any]
    places: Places
    log: Log
    is_first: bool  # there was no model when the job began: better ones are promoted as they come
    is_cancelled: Callable[[], bool]
    announce: Callable[[], None]
    _looks: list[dict[str, Any]] = field(default_factory=list)
    _samples: list[dict[str, Any]] = field(default_factory=list)
    _told: float = -math.inf
    _promoted: list[Path] = field(default_factory=list)  # by this job, on the way
    _setup: TrainingSetup | None = None

    def run(self) -> dict[str, Any]:
        """The job's result. Raised: ModelError, ServiceError: what cannot be mended by trying again."""
        config, corpus, network, source = self._prepare()
        path: Path | None
        try:
            path = self._fit(config, corpus, network, source)
        except KeyboardInterrupt:
            path = self._best()
        if path is None:
            return {"cancelled": True, "checkpoint": None, "decision": None}
        kept = registry.register(path, self.places.checkpoints)
        self._advise(whole=float(file_format.read_info(kept).run["val_loss"]))
        cancelled = self.is_cancelled()
        if self._promoted:
            decision = decision_of(True, "there was no model before this job")
        elif cancelled:
            decision = decision_of(False, "the job was cancelled; its best checkpoint can be promoted by hand")
        else:
            decision = judge(self.wanted["promote"], kept, corpus, self.places.device)
        if decision["promoted"]:
            registry.promote(kept)
            self.announce()
        self._tidy(kept)
        return {"cancelled": cancelled, "checkpoint": file_format.read_info(kept).as_dict(), "decision": decision}

    def _prepare(self) -> tuple[TrainConfig, Corpus, ModelConfig, Checkpoint | None]:
        network, config = settings_of(self.wanted)
        names = [self.wanted["corpus"]] if isinstance(self.wanted["corpus"], str) else self.wanted["corpus"]
        read = [self.places.corpora.text(name) for name in names]
        corpus = Corpus.from_texts([text for text, _ in read], config)
        for name, (_, notes) in zip(names, read, strict=True):
            for note in notes:
                self.log.note(f"{name}: {note}")
        source = self._source()
        if source is not None:  # its shape, unless another was asked for: then the trainer says that it does not fit
            shape = {k: v for k, v in asdict(source.config).items() if k != "vocab_size"}
            network = {**shape, **{k: v for k, v in self.wanted.items() if k in shape}}
        model = ModelConfig(vocab_size=len(corpus.vocab), **network)
        self.log.note(
            f"{corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; {model.cell} {model.n_layers} x "
            f"{model.n_hidden}, {model.n_parameters:,} parameters"
        )
        self._setup = TrainingSetup.of(model, config, corpus)
        self._advise()
        return config, corpus, model, source

    def _source(self) -> Checkpoint | None:
        """The model whose weights are begun with."""
        if not self.wanted["warm_start"]:
            return None
        path = registry.promoted_path(self.places.checkpoints)
        if path is None:
            self.log.note("warm_start: nothing has been promoted yet, so it begins fresh")
            return None
        self.log.note(f"warm_start: begins with the weights of {path.name}")
        return file_format.load(path)

    def _fit(self, config: TrainConfig, corpus: Corpus, model: ModelConfig, source: Checkpoint | None) -> Path:
        """Train; an attempt after the first goes on from the last resume point, if there is one that can be used."""
        folder = self.places.run

        def begin(resume: bool) -> Path:
            return fit(
                corpus,
                model,
                config,
                folder,
                device=self.places.device,
                on_progress=self._watch,
                run=folder,
                resume=resume,
                warm_start=source,
                sample_chars=SAMPLE_CHARS,
            )

        if (folder / "run.json").exists():
            try:
                self.log.note("goes on from its last resume point")
                self._looks = [_shown(line) for line in RunFolder(folder).metrics() if line["val_loss"] is not None]
                return begin(resume=True)
            except (ConfigError, CheckpointError, StorageError) as e:
                self.log.note(f"cannot go on, and begins anew: {e}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._looks.clear()
        return begin(resume=False)

    def _watch(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.val_loss is not None:
            self._look(progress)
        if progress.val_loss is not None or now - self._told > _TELL_S:
            self._told = now
            told = _told(progress)
            self.log.put(progress=told)
            self.log.emit("progress", told)
        if self.is_cancelled():
            raise KeyboardInterrupt

    def _look(self, progress: Progress) -> None:
        look = _shown(asdict(progress))
        self._looks = [each for each in self._looks if each["step"] < progress.step] + [look]
        self.log.put(looks=self._looks[-500:])
        self.log.emit("look", look)
        if (
            look["is_best"]
            and progress.best_checkpoint is not None
            and self.is_first
            and self.wanted["promote"] != "never"
        ):
            self._promote_on_the_way(progress.best_checkpoint, float(progress.best_val_loss or 0.0))
        if progress.sample is not None:
            sample = {"step": progress.step, "text": progress.sample}
            self._samples.append(sample)
            self.log.put(samples=self._samples[-12:])
            self.log.emit("sample", sample)
        self._advise()

    def _advise(self, whole: float | None = None) -> None:
        """What the sizes and the losses so far say to do; `whole` is the loss of the whole validation part."""
        if self._setup is not None:
            looks = [Validation(each["step"], each["elapsed_s"], each["train"], each["val"]) for each in self._looks]
            found = [*advise_on_setup(self._setup), *advise_on_losses(self._setup, looks)]
            if whole is not None and looks:
                found += advise_on_final_loss(min(look.val_loss for look in looks), whole)
            self.log.put(advice=[asdict(each) for each in found])

    def _promote_on_the_way(self, path: Path, val_loss: float) -> None:
        before = registry.promoted_path(self.places.checkpoints)
        if before is not None and file_format.read_info(before).run["val_loss"] <= val_loss:
            return  # from an attempt before this one
        kept = registry.register(path, self.places.checkpoints)
        registry.promote(kept)
        self.announce()
        self.log.emit("promoted", {"name": kept.name})
        self._promoted = [p for p in self._promoted if p != kept] + [kept]
        for old in self._promoted[:-2]:  # the promoted one and its predecessor stay
            old.unlink(missing_ok=True)
        self._promoted = self._promoted[-2:]

    def _best(self) -> Path | None:
        """The run's best checkpoint so far: the trainer removes those that it beats."""
        found = [p for p in registry.checkpoint_paths(self.places.run) if p.name.startswith("val")]
        return found[0] if found else None

    def _tidy(self, kept: Path) -> None:
        promoted = registry.promotion_history(self.places.checkpoints)[:2]
        for path in self._promoted:
            if path != kept and path.name not in promoted:
                path.unlink(missing_ok=True)
        registry.prune(self.places.checkpoints, self.places.keep_models)
        shutil.rmtree(self.places.run, ignore_errors=True)


def _shown(progress: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a look at the validation part."""
    return {
        "step": progress["step"],
        "elapsed_s": round(progress["elapsed_s"], 1),
        "train": progress["train_loss"],
        "val": progress["val_loss"],
        "is_best": progress["val_loss"] == progress["best_val_loss"],
    }


def _told(progress: Progress) -> dict[str, Any]:
    left = progress.remaining_s
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "train_loss": progress.train_loss,
        "best_val_loss": progress.best_val_loss,
        "lr": progress.lr,
        "chars_per_s": round(progress.chars_per_s),
        "elapsed_s": round(progress.elapsed_s, 1),
        "left_s": round(left, 1) if left is not None else None,
    }
