"""python -m model sweep: search hyperparameters with many short runs and promote the best checkpoint."""

from __future__ import annotations

import argparse

from model.checkpoints import file_format, registry
from model.cli import console, options, training_console
from model.config import ModelConfig, TrainConfig
from model.errors import ConfigError
from model.network.device import resolve_device

_MINUTES = 10.0


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_training(command, minutes_help=f"the budget of the whole sweep (default {_MINUTES:g})")
    command.add_argument("--runs", type=int, default=10, help="how many runs share the budget (default 10)")
    command.add_argument(
        "--study", default="sweep", help="the study's name; an existing one is continued (default sweep)"
    )
    command.add_argument(
        "--storage",
        default="",
        help="a file or a Redis URL that several processes may share (default: a file in --out)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the sweep, promote its best checkpoint and print the leaderboard."""
    from model.training.sweep import Sweep  # Optuna takes a second to load

    if args.runs < 1:
        raise ConfigError(field="runs", value=args.runs, expected="a whole number from 1")
    settings = options.all_settings(args)
    minutes = args.minutes or _MINUTES
    config = TrainConfig.from_dict({**options.fields_of(TrainConfig, settings), "minutes": minutes})
    store = args.out or options.CHECKPOINT_FOLDER
    options.check_model_settings(settings)
    corpus, config = options.load_corpus(args.corpus, config, store, options.explicit_settings(args))
    training_console.print_notes(corpus)
    model = ModelConfig(vocab_size=len(corpus.vocab), **options.fields_of(ModelConfig, settings))
    sweep = Sweep(
        corpus, model, config, store, study=args.study, storage=args.storage, device=resolve_device(args.device)
    )
    path = sweep.run(args.runs, minutes, training_console.print_sweep_run)
    registry.promote(path)
    training_console.print_leaderboard(sweep.leaderboard())
    console.print_checkpoint(file_format.load(path), path)
