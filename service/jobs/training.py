"""One training, from its request to its result: corpus -> fit -> judge -> promote. It knows no Redis and no queue.

A run works in a folder of its own; only a whole checkpoint is brought from there to where the service reads. While
there is no other model to serve, each better checkpoint is promoted as it comes; else the last one, if it may be.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model import checkpoint, registry
from model.checkpoint import Checkpoint
from model.config import ModelConfig, TrainConfig
from model.corpus import Corpus
from model.errors import CheckpointError
from model.evaluate import loss
from model.generate import generate
from model.sampling import SamplingParams
from model.train import Progress, fit
from service.corpora import Corpora
from service.jobs.request import settings_of

SAMPLE_CHARS = 240
_SAMPLED = SamplingParams(temperature=0.8)
_TELL_S = 0.5  # between two words of progress
_LEFT_OUT = 0.01  # of the validation text may be unknown to the promoted model, for the two to be compared


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

    def run(self) -> dict[str, Any]:
        """The job's result. Raised: ModelError, ServiceError: what cannot be mended by trying again."""
        config, corpus, network = self._prepare()
        path: Path | None
        try:
            path = self._fit(corpus, network, config)
        except KeyboardInterrupt:
            path = self._best()
        if path is None:
            return {"cancelled": True, "checkpoint": None, "decision": None}
        kept = registry.publish(path, self.places.checkpoints)
        cancelled = self.is_cancelled()
        if self._promoted:
            decision = _decision(True, "there was no model before this job")
        elif cancelled:
            decision = _decision(False, "the job was cancelled; its best checkpoint can be promoted by hand")
        else:
            decision = self._judge(kept, corpus)
        if decision["promoted"]:
            checkpoint.promote(kept)
            self.announce()
        self._tidy(kept)
        return {"cancelled": cancelled, "checkpoint": registry.summary(kept).as_dict(), "decision": decision}

    def _prepare(self) -> tuple[TrainConfig, Corpus, ModelConfig]:
        network, config = settings_of(self.wanted)
        names = [self.wanted["corpus"]] if isinstance(self.wanted["corpus"], str) else self.wanted["corpus"]
        read = [self.places.corpora.text(name) for name in names]
        corpus = Corpus.from_texts([text for text, _ in read], config)
        for name, (_, notes) in zip(names, read, strict=True):
            for note in notes:
                self.log.note(f"{name}: {note}")
        model = ModelConfig(vocab_size=len(corpus.vocab), **network)
        self.log.note(
            f"{corpus.n_characters:,} characters, {len(corpus.vocab)} distinct; {model.cell} {model.n_layers} x "
            f"{model.n_hidden}, {model.n_parameters:,} parameters"
        )
        return config, corpus, model

    def _fit(self, corpus: Corpus, network: ModelConfig, config: TrainConfig) -> Path:
        """The seam to the trainer: what it is given, and where an attempt after the first begins."""
        shutil.rmtree(self.places.run, ignore_errors=True)
        self.places.run.mkdir(parents=True)
        return fit(corpus, network, config, self.places.run, device=self.places.device, watch=self._watch)

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
        is_best = progress.val_loss == progress.best
        look = {
            "step": progress.step,
            "elapsed_s": round(progress.elapsed_s, 1),
            "train": progress.train_loss,
            "val": progress.val_loss,
            "is_best": is_best,
        }
        self._looks.append(look)
        self.log.put(looks=self._looks[-500:])
        self.log.emit("look", look)
        path = self._best()
        if not is_best or path is None:
            return
        best = checkpoint.load(path)
        if self.is_first and self.wanted["promote"] != "never":
            self._promote_on_the_way(path, best.val_loss)
        text = generate(best.network(), best.vocab, "", SAMPLE_CHARS, _SAMPLED, seed=best.step).text
        sample = {"step": progress.step, "text": text}
        self._samples.append(sample)
        self.log.put(samples=self._samples[-12:])
        self.log.emit("sample", sample)

    def _promote_on_the_way(self, path: Path, val_loss: float) -> None:
        before = checkpoint.promoted(self.places.checkpoints)
        if before is not None and registry.summary(before).run["val_loss"] <= val_loss:
            return  # from an attempt before this one
        kept = registry.publish(path, self.places.checkpoints)
        checkpoint.promote(kept)
        self.announce()
        self.log.emit("promoted", {"name": kept.name})
        self._promoted = [p for p in self._promoted if p != kept] + [kept]
        for old in self._promoted[:-2]:  # the promoted one and its predecessor stay
            old.unlink(missing_ok=True)
        self._promoted = self._promoted[-2:]

    def _best(self) -> Path | None:
        """The run's best checkpoint so far: the trainer removes those that it beats."""
        found = [p for p in registry.files(self.places.run) if p.name.startswith("val")]
        return found[0] if found else None

    def _judge(self, path: Path, corpus: Corpus) -> dict[str, Any]:
        """Whether this checkpoint is to be promoted, why, and the numbers that say so."""
        rule = self.wanted["promote"]
        if rule == "never":
            return _decision(False, "promote is never")
        if rule == "always":
            return _decision(True, "promote is always")
        try:
            before = checkpoint.promoted(self.places.checkpoints)
            old = checkpoint.load(before) if before is not None else None
        except CheckpointError as e:
            return _decision(True, f"what is promoted cannot be used: {e}")
        if old is None:
            return _decision(True, "there was no model before it")
        return compare(checkpoint.load(path), old, corpus, self.places.device)

    def _tidy(self, kept: Path) -> None:
        promoted = checkpoint.promotions(self.places.checkpoints)[:2]
        for path in self._promoted:
            if path != kept and path.name not in promoted:
                path.unlink(missing_ok=True)
        registry.prune(self.places.checkpoints, self.places.keep_models)
        shutil.rmtree(self.places.run, ignore_errors=True)


def compare(new: Checkpoint, old: Checkpoint, corpus: Corpus, device: str) -> dict[str, Any]:
    """Both models on the new one's validation text, protocol (b).

    Characters that the old model has never seen are left out for both, as long as they are few; where they are not, the
    two cannot be compared, and the old one stays.
    """
    ids = np.array([old.vocab.characters.find(c) for c in new.vocab.characters])[corpus.val]  # (M,) the old model's
    unknown = ids < 0
    n_unknown = int(unknown.sum())
    numbers = {"protocol": "b", "characters": len(ids) - n_unknown, "left_out": n_unknown}
    if n_unknown > _LEFT_OUT * len(ids):
        missing = "".join(sorted(set(new.vocab.characters) - set(old.vocab.characters)))
        return _decision(
            False,
            f"not comparable: the promoted model cannot read {n_unknown} of the {len(ids)} characters of the "
            f"validation text ({missing[:40]!r}); promote by hand, or ask for promote = always",
            **numbers,
        )
    losses = [
        loss(model.network().to(device), text) for model, text in ((new, corpus.val[~unknown]), (old, ids[~unknown]))
    ]
    is_better = losses[0] < losses[1]
    what = "lower" if is_better else "not lower"
    return _decision(
        is_better,
        f"its validation loss, {losses[0]:.4f}, is {what} than the promoted model's, {losses[1]:.4f}",
        new=losses[0],
        before=losses[1],
        before_id=old.fingerprint,
        **numbers,
    )


def _decision(promoted: bool, reason: str, **numbers: Any) -> dict[str, Any]:
    return {"promoted": promoted, "reason": reason, **numbers}


def _told(progress: Progress) -> dict[str, Any]:
    done = progress.step / progress.total_steps if progress.total_steps else 0.0
    left = progress.elapsed_s * (1 - done) / done if done else None
    return {
        "step": progress.step,
        "total_steps": progress.total_steps,
        "train_loss": progress.train_loss,
        "best_val_loss": progress.best,
        "lr": progress.lr,
        "chars_per_s": round(progress.chars_per_s),
        "elapsed_s": round(progress.elapsed_s, 1),
        "left_s": round(left, 1) if left is not None else None,
    }
