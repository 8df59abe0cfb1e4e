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
from model.network.device import resolve_device
from model.training.distributed import Distributed, process_group
from model.training.loop import fit
from model.training.run_folder import RunFolder, new_run_folder

_SAMPLE_CHARS = 120


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_training(command)
    command.add_argument("--no-promote", action="store_true", help="do not make it the model that is served")
    command.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run: the run's folder")
    command.add_argument("--warm-start", type=Path, metavar="CHECKPOINT", help="start with this checkpoint's weights")


def run(args: argparse.Namespace) -> None:
    """Train; under torchrun, as one of its processes."""
    with process_group(resolve_device(args.device)) as (distributed, device):
        _train(args, distributed, device)


def _train(args: argparse.Namespace, distributed: Distributed, device: str) -> None:
    files, folder = _locations(args)
    settings = options.all_settings(args)
    config = TrainConfig.from_dict(options.fields_of(TrainConfig, settings))
    options.check_model_settings(settings)
    explicit = settings if args.resume else options.explicit_settings(args)  # a resumed run keeps what it was
    corpus, config = options.load_corpus(files, config, folder, explicit, distributed.world_size)
    warm_start = file_format.load(args.warm_start) if args.warm_start else None
    shape = options.fields_of(ModelConfig, settings)
    if warm_start is not None:  # its shape overrides the preset's, an explicit option overrides both
        shape |= {f.name: getattr(warm_start.config, f.name) for f in fields(ModelConfig)}
        shape |= options.fields_of(ModelConfig, options.explicit_settings(args))
    model = ModelConfig(**{**shape, "vocab_size": len(corpus.vocab)})
    run: Path | None = args.resume or (new_run_folder(folder / "runs") if distributed.is_main else None)
    fit_options: dict[str, Any] = {
        "device": device,
        "run": run,
        "resume": bool(args.resume),
        "warm_start": warm_start,
        "sample_chars": _SAMPLE_CHARS,
        "distributed": distributed,
        "metadata": {
            "corpus": [str(file.resolve()) for file in files],
            "checkpoint_folder": str(folder.resolve()),
        },
    }
    if not distributed.is_main:
        fit(corpus, model, config, folder, **fit_options)
        return
    assert run is not None
    with (
        training_console.progress(corpus, model, config) as print_progress,
        training_console.GracefulInterrupt(print_progress) as interruptible,
    ):
        try:
            path = fit(corpus, model, config, folder, on_progress=interruptible, **fit_options)
        finally:
            if interruptible.requested:
                training_console.print_interrupted(run)
    checkpoint = file_format.load(path)
    if not args.no_promote:
        registry.promote(path)
    best_val_loss = min((v.val_loss for v in RunFolder(run).validations()), default=math.inf)
    training_console.print_result(checkpoint, path, run=run, best_val_loss=best_val_loss, promoted=not args.no_promote)
    if len(corpus.test) and not interruptible.requested:
        loss = protocols.loss(checkpoint.network(), corpus.test)
        console.print_scores("test", len(corpus.test) - 1, {"stateful": loss})


def _locations(args: argparse.Namespace) -> tuple[list[Path], Path]:
    """Return the text files, none for the default text, and the checkpoint folder; a resumed run knows both."""
    saved = RunFolder(args.resume).settings()["metadata"] if args.resume else {}
    corpus = saved.get("corpus") or []  # in older run folders one path, or None
    files = args.corpus or [Path(file) for file in ([corpus] if isinstance(corpus, str) else corpus)]
    return files, args.out or Path(saved.get("checkpoint_folder", options.CHECKPOINT_FOLDER))
