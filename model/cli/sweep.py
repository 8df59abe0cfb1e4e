"""python -m model sweep: search hyperparameters with many short runs and promote the best checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import replace

from model import arguments
from model.atomic_files import remove_abandoned
from model.checkpoints import file_format
from model.cli import console, options, training_console
from model.cli.lists import options as list_options
from model.config import ModelConfig, TrainConfig
from model.training.learner import choose_workers

_MINUTES = 10.0
_MAX_RUNS = 10**6


def configure(command: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_training(command, minutes_help=f"the budget of the whole sweep (default {_MINUTES:g})")
    list_options.add_layout(command)
    command.add_argument("--promote", action="store_true", help=options.PROMOTE_HELP)
    command.add_argument(
        "--runs",
        type=arguments.number(int, 1, _MAX_RUNS),
        default=10,
        help="how many runs share the budget (default 10)",
    )
    command.add_argument(
        "--study",
        type=arguments.checked(_check_study),
        default="sweep",
        help="the study's name; an existing one is continued (default sweep)",
    )
    command.add_argument(
        "--storage",
        type=arguments.checked(_check_storage),
        default="",
        help="what several processes may share: the path of a file, sqlite:///FILE, or a Redis URL with redis://, "
        "rediss:// or unix:// (default: a file in --out)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the sweep, promote its best checkpoint and print the leaderboard."""
    from model.training.sweep import Sweep  # Optuna takes a second to load

    device = options.chosen_device(args)
    settings = options.all_settings(args)
    minutes = args.minutes or _MINUTES
    config = TrainConfig.from_dict({**options.fields_of(TrainConfig, settings), "minutes": minutes / args.runs})
    store = options.store_folder(args, args.out or options.CHECKPOINT_FOLDER)
    requested = ModelConfig(vocab_size=2, **options.fields_of(ModelConfig, settings))
    remove_abandoned(store)
    choose_workers(config, device, world_size=1)  # an error comes before a large text is read
    explicit, layout = options.explicit_settings(args), list_options.item_layout(args)
    corpus, config = options.load_corpus(args.corpus, config, requested, store, explicit, layout=layout)
    training_console.print_notes(corpus)
    model = replace(requested, vocab_size=len(corpus.vocab))
    sweep = Sweep(
        corpus,
        model,
        config,
        store,
        study=args.study,
        storage=args.storage,
        device=device,
        origin=options.origin(args.corpus, args),
    )
    with training_console.GracefulInterrupt() as interrupt:
        path = sweep.run(args.runs, minutes, training_console.print_sweep_run, lambda: interrupt.requested)
    if interrupt.requested:
        training_console.print_sweep_interrupted()
    best = file_format.load(path)
    outcome = options.promote(path, best.val_protocol, args)
    training_console.print_leaderboard(sweep.leaderboard())
    console.print_checkpoint(best, path)
    console.console.print(outcome, markup=False)


def _check_study(name: str) -> None:
    from model.training.sweep import check_study_name

    check_study_name(name)


def _check_storage(storage: str) -> None:
    from model.training.sweep import check_storage

    check_storage(storage)
