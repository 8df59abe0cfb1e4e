"""python -m model train: train a model, save the checkpoint with the best validation loss and promote it."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.checkpoints import file_format, registry
from model.cli import console, options, training_console
from model.config import ModelConfig, TrainConfig
from model.evaluation import protocols
from model.training.distributed import Distributed, joined
from model.training.loop import fit
from model.training.run_folder import RunFolder, new_folder

_SAMPLE_CHARS = 120


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_training(command)
    command.add_argument("--no-promote", action="store_true", help="do not make it the model that is served")
    command.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run: the run's folder")
    command.add_argument("--warm-start", type=Path, metavar="CHECKPOINT", help="start with this checkpoint's weights")


def run(args: argparse.Namespace) -> None:
    """Train; under torchrun, as one of its processes."""
    with joined(args.device or "cpu") as (ranks, device):
        _train(args, ranks, device)


def _train(args: argparse.Namespace, ranks: Distributed, device: str) -> None:
    source, store = _locations(args)
    settings = options.all_settings(args)
    config = TrainConfig.from_dict(options.fields_of(TrainConfig, settings))
    options.check_model_settings(settings)
    corpus = options.load_corpus(source, config, store)
    warm_start = file_format.load(args.warm_start) if args.warm_start else None
    shape = options.fields_of(ModelConfig, settings)
    if warm_start is not None:  # its shape overrides the preset's, an explicit option overrides both
        shape |= {f.name: getattr(warm_start.config, f.name) for f in fields(ModelConfig)}
        shape |= options.fields_of(ModelConfig, options.explicit_settings(args))
    model = ModelConfig(**{**shape, "vocab_size": len(corpus.vocab)})
    run: Path | None = args.resume or (new_folder(store / "runs") if ranks.leads else None)
    about = {"corpus": str(source.resolve()) if source else None, "store": str(store.resolve())}
    fit_options: dict[str, Any] = {"device": device, "run": run, "resume": bool(args.resume), "warm_start": warm_start}
    fit_options |= {"ranks": ranks, "about": about, "sample_chars": _SAMPLE_CHARS}
    if not ranks.leads:
        fit(corpus, model, config, store, **fit_options)
        return
    assert run is not None
    with (
        training_console.progress(corpus, model, config) as watch,
        training_console.GracefulInterrupt(watch) as interruptible,
    ):
        try:
            path = fit(corpus, model, config, store, watch=interruptible, **fit_options)
        finally:
            if interruptible.requested:
                training_console.print_interrupted(run)
    loaded = file_format.load(path)
    if not args.no_promote:
        registry.promote(path)
    losses = [line["val_loss"] for line in RunFolder(run).metrics() if line["val_loss"] is not None]
    training_console.print_result(
        loaded, path, run=run, best_val_loss=min(losses, default=math.inf), promoted=not args.no_promote
    )
    if len(corpus.test) and not interruptible.requested:
        console.print_scores("test", len(corpus.test) - 1, {"b": protocols.loss(loaded.network(), corpus.test)})


def _locations(args: argparse.Namespace) -> tuple[Path | None, Path]:
    """Return the text's path, None for the default text, and the checkpoint folder: a resumed run knows both."""
    saved = dict(RunFolder(args.resume).settings().get("about") or {}) if args.resume else {}
    source = args.corpus or (Path(saved["corpus"]) if saved.get("corpus") else None)
    return source, args.out or Path(saved.get("store", options.CHECKPOINT_FOLDER))
