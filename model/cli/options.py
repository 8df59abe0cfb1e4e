"""Argument groups that several commands share, and the settings that parsed arguments stand for."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, Literal

from model import arguments
from model.checkpoints import names, registry
from model.checkpoints.kinds import differs_from_promoted
from model.cli import console
from model.config import DEVICES, PRESETS, EvaluationProtocol, ModelConfig, TrainConfig
from model.data_folder import data_folder
from model.errors import CheckpointError, ConfigError
from model.network.device import resolve_device
from model.text.corpus import Corpus, CorpusSizes
from model.text.default_text import default_text
from model.text.fitting import FittedConfig, fit_to_text
from model.text.items.layout import TEXT, ItemLayout
from model.text.memory_map import read_corpora
from model.training.run_folder import RunFolder

DEFAULT_TEXT = "shakespeare"
"""What the default text is called."""
PROMOTE_HELP = "make it the model that is served also where one of the other kind is: of a list, or of a text"
CHECKPOINT_FOLDER = data_folder() / "checkpoints"


def add_corpus(command: argparse.ArgumentParser) -> None:
    """Add the text to score."""
    command.add_argument("corpus", type=Path, nargs="?", help="a UTF-8 text file (default: the works of Shakespeare)")


def add_corpora(command: argparse.ArgumentParser) -> None:
    """Add the texts to train on."""
    command.add_argument(
        "corpus",
        type=Path,
        nargs="*",
        help="UTF-8 text files; the end of each validates (default: Shakespeare's works)",
    )


def add_checkpoint(command: argparse._ActionsContainer) -> None:
    """Add the options that choose a checkpoint; `chosen_checkpoint` reads them."""
    command.add_argument("--checkpoint", type=Path, help="a checkpoint file (default: the promoted one)")
    add_checkpoint_folder(command)
    add_model_name(command)


def add_checkpoint_folder(command: argparse._ActionsContainer) -> None:
    """Add the folder in which the promoted checkpoint is looked up."""
    help = f"folder of checkpoints (default {CHECKPOINT_FOLDER})"
    command.add_argument("--store", type=Path, default=CHECKPOINT_FOLDER, help=help)


def add_model_name(command: argparse._ActionsContainer) -> None:
    """Add the name of the model whose store is used; `store_folder` reads it."""
    command.add_argument(
        "--model",
        type=arguments.checked(_check_name),
        metavar="NAME",
        default=names.DEFAULT,
        help=f"the model's name, as a server has it: {names.MODELS}/NAME in the folder is its store (default "
        f"{names.DEFAULT}: the folder itself)",
    )


def store_folder(args: argparse.Namespace, root: Path) -> Path:
    """Return the store of the model that --model names, in a folder of checkpoints."""
    return names.store_folder(root, args.model)


def _check_name(value: str) -> None:
    if not names.is_model_name(value):
        raise ConfigError(field="model", value=value, expected=names.NAME_EXPECTED)


def promote(path: Path, protocol: EvaluationProtocol, args: argparse.Namespace) -> str:
    """Promote a new checkpoint, unless that would put a list's model in place of a text's, or the reverse.

    Args:
        path: The checkpoint.
        protocol: Of its validation loss.
        args: With `promote`: promote it in any case.

    Returns:
        What became of it, in words for people.
    """
    if reason := not_promoted(protocol, path.parent, args):
        return reason
    registry.promote(path)
    return "promoted: it will be served"


def not_promoted(protocol: EvaluationProtocol, folder: Path, args: argparse.Namespace) -> str:
    """Return why a model of this protocol is not promoted in a folder, and what to do; empty if it is."""
    if args.promote or not (reason := differs_from_promoted(protocol, folder)):
        return ""
    return f"not promoted: {reason}; --model NAME trains a model of its own, --promote replaces the promoted one"


def add_training(command: argparse.ArgumentParser, minutes_help: str = "") -> None:
    """Add the corpus, the output folder, the device, the presets and every field of the two configurations.

    Args:
        command: The command's parser.
        minutes_help: What --minutes means for this command, where that differs from training.
    """
    add_corpora(command)
    command.add_argument("--out", type=Path, help=f"folder of checkpoints (default {CHECKPOINT_FOLDER})")
    add_model_name(command)
    command.add_argument(
        "--preset",
        type=arguments.one_of(tuple(PRESETS)),
        metavar=_choices(PRESETS),
        help="named settings, which are the defaults below; other options override them (default quick)",
    )
    command.add_argument(
        "--device",
        type=arguments.one_of(DEVICES),
        metavar=_choices(DEVICES),
        help="cpu, cuda, or auto: a GPU if there is one (default cpu; that of the run which is resumed)",
    )
    for title, config in (("the network", ModelConfig), ("the training", TrainConfig)):
        group = command.add_argument_group(title)
        for f in fields(config):
            if f.name != "vocab_size":
                help = f"{f.metadata['help']} ({_defaults(f)})"
                if minutes_help and f.name == "minutes":
                    help = minutes_help
                choices = f.metadata.get("choices")
                group.add_argument(
                    "--" + f.name.replace("_", "-"),
                    dest=f.name,
                    type=arguments.setting(f),
                    metavar=_choices(choices) if choices else None,
                    help=help,
                )


def _choices(words: Iterable[str]) -> str:
    return "{" + ",".join(words) + "}"


def _defaults(setting: Field[Any]) -> str:
    """Return the default of a setting, by preset where they differ."""
    values = {name: preset.get(setting.name, setting.default) for name, preset in PRESETS.items()}
    if len(set(values.values())) == 1:
        return f"default {setting.default}"
    return ", ".join(f"{name}: {value:g}" for name, value in values.items())


def explicit_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that were given on the command line or have a default of their own."""
    return {k: v for k, v in vars(args).items() if v is not None}


def all_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the resumed run or of the preset, overridden by those given on the command line."""
    explicit = explicit_settings(args)
    if getattr(args, "resume", None):
        saved = RunFolder(args.resume).settings()
        preset = PRESETS[args.preset] if args.preset else {}
        return {**saved["model"], **saved["train"], **preset, **explicit}
    return {**PRESETS[args.preset or "quick"], **explicit}


def fields_of(config: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are fields of this configuration, less `vocab_size`, which the text decides."""
    return {f.name: settings[f.name] for f in fields(config) if f.name in settings and f.name != "vocab_size"}


def chosen_device(args: argparse.Namespace) -> Literal["cpu", "cuda"]:
    """Return the device that was named; else that of the resumed run, and of a new one the CPU.

    Raises:
        ConfigError: It is a GPU, and this machine has none.
    """
    saved = RunFolder(args.resume).settings() if getattr(args, "resume", None) else {}
    try:
        return resolve_device(args.device or saved.get("device", "cpu"))
    except ConfigError as e:
        if args.device or not saved:
            raise
        problem = f"was started on {saved['device']}, which this machine has not"
        hint = RunFolder(args.resume).warm_start_hint()
        raise ConfigError(f"{problem}; {hint}", field=f"run {args.resume}") from e


def load_corpus(
    files: Sequence[Path],
    config: TrainConfig,
    model: ModelConfig,
    folder: Path,
    explicit: Collection[str],
    n_processes: int = 1,
    layout: ItemLayout = TEXT,
) -> tuple[Corpus, TrainConfig]:
    """Read and encode the texts, and adapt the settings that nobody set to them.

    Args:
        files: The text files; none means the default text.
        config: The settings.
        model: The shape of the network; `vocab_size` may be any.
        folder: Large texts are encoded in `folder`/texts.
        explicit: The names of the settings that must not be changed.
        n_processes: How many processes share a batch.
        layout: Whether the texts are lists.

    Returns:
        The corpus, whose notes say what was changed, and the settings that fit it.

    Raises:
        TextError: A text cannot be used.
        ConfigError: An explicit setting cannot work with the texts.
    """
    fitted = FittedConfig(config, ())

    def config_of(sizes: CorpusSizes, n_distinct: int) -> TrainConfig:
        nonlocal fitted
        fitted = fit_to_text(config, model, sizes, n_distinct, explicit=explicit, n_processes=n_processes)
        return fitted.config

    with console.encoding() as on_progress:
        corpus = read_corpora(files or [default_text()], config_of, folder / "texts", on_progress, layout)
    return replace(corpus, notes=(*corpus.notes, *fitted.notes)), fitted.config


def corpus_of_model(
    files: Sequence[Path], training: Mapping[str, Any], folder: Path, layout: ItemLayout = TEXT
) -> Corpus:
    """Read texts, and split them as the training of a model did.

    Args:
        files: The text files; none means the default text.
        training: The options of the checkpoint.
        folder: Large texts are encoded there.
        layout: Whether the texts are lists.

    Raises:
        TextError: A text cannot be used.
    """
    names = ("val_fraction", "test_fraction", "max_vocab")
    fractions = {name: training[name] for name in names if name in training}
    config = TrainConfig.from_dict({**fractions, "batch_size": 1, "seq_length": 1})
    return read_corpora(files or [default_text()], lambda _sizes, _n: config, folder, layout=layout)


def origin(files: Sequence[Path], args: argparse.Namespace) -> dict[str, str]:
    """Return what a checkpoint keeps for people: the names of its texts, and of the preset of a new run."""
    corpus = " + ".join(file.name.removesuffix("".join(file.suffixes)) for file in files) or DEFAULT_TEXT
    return {"corpus": corpus, "preset": "" if getattr(args, "resume", None) else args.preset or "quick"}


def chosen_checkpoint(args: argparse.Namespace) -> Path:
    """Return the checkpoint that was named, or the promoted one.

    Raises:
        CheckpointError: None was named and none has been promoted.
    """
    if args.checkpoint is not None:
        return Path(args.checkpoint)
    folder = store_folder(args, args.store)
    path = registry.promoted_path(folder)
    if path is None:
        problem = "no checkpoint has been promoted; train one with python -m model train"
        raise CheckpointError(problem, field=str(folder))
    return path
