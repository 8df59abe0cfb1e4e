"""What a report and a model card are made of: a model's description, losses, memorization and samples."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from model import arguments
from model.checkpoints.file_format import Checkpoint
from model.cli import options
from model.errors import CheckpointError, ConfigError, TextError
from model.evaluation.report.page import Section
from model.export.report import N_TEXTS, ReportExtent, report_sections
from model.network.sampling import MAX_SEED
from model.text.corpus import Corpus
from model.text.items.layout import TEXT
from model.training.run_folder import RunFolder


def add_origin(command: argparse.ArgumentParser) -> None:
    """Add the options that name the corpus and the run of the model, where they are not found by themselves."""
    command.add_argument(
        "--corpus",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="the files that the model was trained on (default: those of its run, where they are still there)",
    )
    command.add_argument(
        "--run",
        type=Path,
        dest="run_folder",
        metavar="RUN",
        help="the folder of its run, for the loss curves (default: searched beside the model)",
    )


def add_generation(command: argparse.ArgumentParser) -> None:
    """Add the options of what is generated."""
    command.add_argument(
        "--items",
        type=arguments.number(int, 1, 1_000_000),
        help="of a list: items that are generated and counted (default 1000)",
    )
    command.add_argument(
        "--max-chars",
        type=arguments.number(int, 1, 1_000_000),
        help=f"of a text: characters of each of the {N_TEXTS} samples (default 2000)",
    )
    command.add_argument(
        "--seed", type=arguments.number(int, 0, MAX_SEED), default=0, help="of what is generated (default 0)"
    )


@dataclass(frozen=True, slots=True)
class Contents:
    """The sections of a report, and where they are from."""

    sections: list[Section]
    corpus: Corpus | None  # None: not at hand
    run_folder: RunFolder | None  # None: not found


def contents(args: argparse.Namespace, path: Path, loaded: Checkpoint) -> Contents:
    """Describe a model, generate from it, and compare that with its corpus.

    Args:
        args: The arguments of `add_origin` and `add_generation`, and the folder of checkpoints.
        path: The checkpoint file.
        loaded: The checkpoint.

    Raises:
        ConfigError: An option does not fit the model, or the corpus is another one.
        CheckpointError: The run cannot be read.
        TextError: A file that was named cannot be read.
    """
    unused, kind = ("max_chars", "a text") if loaded.items is not None else ("items", "a list")
    if getattr(args, unused) is not None:
        raise ConfigError(field=unused, value=getattr(args, unused), expected=f"none: it is for a model of {kind}")
    run_folder = RunFolder(args.run_folder) if args.run_folder is not None else _run_of(path, loaded)
    corpus = _corpus(args, loaded, run_folder)
    metrics = run_folder.metrics() if run_folder is not None else []
    return Contents(report_sections(path, loaded, corpus, metrics, _extent(args)), corpus, run_folder)


def _extent(args: argparse.Namespace) -> ReportExtent:
    default = ReportExtent()
    return ReportExtent(args.items or default.items, args.max_chars or default.chars, seed=args.seed)


def _run_of(path: Path, loaded: Checkpoint) -> RunFolder | None:
    """Return the run that saved a checkpoint, the newest that names it; None where there is none beside it."""
    for folder in sorted((path.parent / "runs").glob("*/"), reverse=True):
        try:
            run_folder = RunFolder(folder)
            is_named = run_folder.best_checkpoint_name() == path.name
            if is_named and run_folder.settings().get("corpus_sha256") == loaded.corpus_sha256:
                return run_folder
        except CheckpointError:
            continue
    return None


def _corpus(args: argparse.Namespace, loaded: Checkpoint, run_folder: RunFolder | None) -> Corpus | None:
    """Return the corpus of the model; None if its files are neither named nor where they were.

    Raises:
        ConfigError: The named files are another corpus.
        TextError: A named file cannot be read.
    """
    files = args.corpus
    if files is None and run_folder is not None:
        saved = run_folder.settings()["metadata"].get("corpus")
        files = None if saved is None else [Path(file) for file in ([saved] if isinstance(saved, str) else saved)]
    if files is None:
        return None
    layout = TEXT if loaded.items is None else loaded.items.layout
    try:
        texts = options.store_folder(args, args.store) / "texts"
        corpus = options.corpus_of_model(files, loaded.options, texts, layout)
    except TextError:
        if args.corpus is not None:
            raise
        return None
    if corpus.sha256 == loaded.corpus_sha256:
        return corpus
    if args.corpus is not None:
        names, expected = ", ".join(map(str, files)), f"the corpus of the model, sha256 {loaded.corpus_sha256}"
        raise ConfigError(f"the sha256 of {names} is {corpus.sha256}", field="corpus", expected=expected)
    return None
