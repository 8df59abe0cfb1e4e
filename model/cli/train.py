"""python -m model train: train a model, save the checkpoint with the best validation loss and promote it."""

from __future__ import annotations

import argparse
import math
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.atomic_files import remove_abandoned
from model.checkpoints import file_format
from model.cli import console, options, training_console
from model.cli.lists import options as list_options
from model.config import EvaluationProtocol, ModelConfig, TrainConfig
from model.evaluation import protocols
from model.evaluation.item_losses import item_losses
from model.text.corpus import Corpus
from model.training.distributed import Distributed, process_group
from model.training.learner import choose_workers
from model.training.loop import fit
from model.training.run_folder import RunFolder, new_run_folder
from model.training.warm_start import check_shape

_SAMPLE_CHARS = 120


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_training(command)
    list_options.add_layout(command, for_training=True)
    promotion = command.add_mutually_exclusive_group()
    promotion.add_argument("--no-promote", action="store_true", help="do not make it the model that is served")
    promotion.add_argument("--promote", action="store_true", help=options.PROMOTE_HELP)
    command.add_argument("--resume", type=Path, metavar="RUN", help="continue an interrupted run: the run's folder")
    command.add_argument("--warm-start", type=Path, metavar="CHECKPOINT", help="start with this checkpoint's weights")


def run(args: argparse.Namespace) -> None:
    """Train; under torchrun, as one of its processes."""
    with process_group(options.chosen_device(args)) as (distributed, device):
        _train(args, distributed, device)


def _train(args: argparse.Namespace, distributed: Distributed, device: str) -> None:
    files, folder = _locations(args)
    if distributed.is_main:
        remove_abandoned(folder)
    settings = options.all_settings(args)
    config = TrainConfig.from_dict(options.fields_of(TrainConfig, settings))
    if not args.resume:
        choose_workers(config, device, distributed.world_size)  # an error comes before a large text is read
    warm_start = file_format.load(args.warm_start) if args.warm_start else None
    shape = options.fields_of(ModelConfig, settings)
    if warm_start is not None:  # its shape overrides the preset's, an explicit option overrides both
        shape |= {f.name: getattr(warm_start.config, f.name) for f in fields(ModelConfig)}
        shape |= options.fields_of(ModelConfig, options.explicit_settings(args))
        check_shape(warm_start.config, ModelConfig(**shape))
    requested = ModelConfig(**{"vocab_size": 2, **shape})
    explicit = settings if args.resume else options.explicit_settings(args)  # a resumed run keeps what it was
    saved_layout = RunFolder(args.resume).settings()["metadata"].get("layout", {"items": "text"}) if args.resume else {}
    layout = list_options.item_layout(args, saved_layout)
    list_options.refuse_for_text(args, layout)
    corpus, config = options.load_corpus(files, config, requested, folder, explicit, distributed.world_size, layout)
    list_options.refuse_for_text(args, corpus.layout)
    model = ModelConfig(**{**shape, "vocab_size": len(corpus.vocab)})
    run: Path | None = args.resume or (new_run_folder(folder / "runs") if distributed.is_main else None)
    fit_options: dict[str, Any] = {
        "device": device,
        "run": run,
        "resume": bool(args.resume),
        "warm_start": warm_start,
        "sample_chars": _SAMPLE_CHARS,
        "distributed": distributed,
        "origin": options.origin(files, args),
        "metadata": {
            "corpus": [str(file.resolve()) for file in files],
            "checkpoint_folder": str(folder.resolve()),
            "layout": corpus.layout.as_dict(),
        },
    }
    if not distributed.is_main:
        fit(corpus, model, config, folder, **fit_options)
        return
    assert run is not None
    if not args.no_promote and (reason := options.not_promoted(_protocol(corpus), folder, args)):
        console.console.print(f"note    when it is trained, it is {reason}", markup=False)
    with (
        training_console.progress(corpus, model, config) as print_progress,
        training_console.GracefulInterrupt(print_progress, _signals(distributed)) as interruptible,
    ):
        try:
            path = fit(corpus, model, config, folder, on_progress=interruptible, **fit_options)
        finally:
            if interruptible.requested:
                training_console.print_interrupted(run, _resume_options(args, device))
    checkpoint = file_format.load(path)
    outcome = "not promoted" if args.no_promote else options.promote(path, checkpoint.val_protocol, args)
    best_val_loss = min((v.val_loss for v in RunFolder(run).validations()), default=math.inf)
    training_console.print_result(checkpoint, path, run=run, best_val_loss=best_val_loss, outcome=outcome)
    if not len(corpus.test) or interruptible.requested:
        return
    if corpus.item_end is not None:
        console.print_item_scores("test", item_losses(checkpoint.network(), corpus.test, corpus.item_end))
        return
    loss = protocols.loss(checkpoint.network(), corpus.test)
    console.print_scores("test", len(corpus.test) - 1, {"stateful": loss})


def _protocol(corpus: Corpus) -> EvaluationProtocol:
    """Return by which protocol the checkpoint's validation loss will be measured."""
    return "stateful" if corpus.item_end is None else "items"


def _signals(distributed: Distributed) -> list[signal.Signals]:
    """Return the signals after which a run is saved. torchrun sends SIGTERM when another of its processes failed."""
    return [signal.SIGINT] if distributed.world_size > 1 else [signal.SIGINT, signal.SIGTERM]


def _resume_options(args: argparse.Namespace, device: str) -> list[str]:
    """Return the arguments that a resumed run needs, beside its folder, to be what this one would have been."""
    options = [] if device == "cpu" else ["--device", device.partition(":")[0]]
    return [*options, *["--no-promote"] * args.no_promote, *["--promote"] * args.promote]


def _locations(args: argparse.Namespace) -> tuple[list[Path], Path]:
    """Return the text files, none for the default text, and the checkpoint folder; a resumed run knows both."""
    saved = RunFolder(args.resume).settings()["metadata"] if args.resume else {}
    corpus = saved.get("corpus") or []  # in older run folders one path, or None
    files = args.corpus or [Path(file) for file in ([corpus] if isinstance(corpus, str) else corpus)]
    if saved and args.out is None:
        return files, Path(saved.get("checkpoint_folder", options.CHECKPOINT_FOLDER))
    return files, options.store_folder(args, args.out or options.CHECKPOINT_FOLDER)
