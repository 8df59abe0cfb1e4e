"""The command line: one module a command, each with `configure(parser)` and `run(args)`.

Here belong arguments, printed text and exit codes. What a command computes belongs to the other folders of model/.
"""

from __future__ import annotations

import argparse
import sys

from model.arguments import USAGE_ERROR, ArgumentParser
from model.errors import ConfigError, ModelError

COMMANDS = {
    "train": "train a model on a text and promote the checkpoint with the best validation loss",
    "sample": "generate text from a checkpoint, the same that the service would",
    "score": "measure a model's loss on a text under the named evaluation protocols",
    "sweep": "search sizes, dropouts and learning rates with many short runs; promote the best",
    "plot": "draw the loss curves of a training run",
    "report": "write a page on a model: loss curves, samples, and how much of them is copied from its corpus",
    "info": "describe a checkpoint: its shape, losses and training options",
    "export": "write a checkpoint in another format: ONNX, a folder for the Hugging Face hub, a page without a server",
    "import": "take a model from elsewhere into the store: such a folder, or a plain PyTorch state dict",
}
"""Every command and its summary. Listing them loads neither torch nor the commands themselves."""

EXAMPLES = {
    "train": ("train names.txt --items lines --minutes 1", "train story.txt --preset best", "train --resume RUN"),
    "sample": ('sample "KING." --max-chars 200 --seed 1', "sample --items 20 --novel"),
    "score": ("score story.txt", "score usual.log --items lines --each --above 99.9"),
    "sweep": ("sweep names.txt --items lines --minutes 10 --runs 8",),
    "info": ("info", "info data/checkpoints/val1.4302-step004200.safetensors"),
}
"""Commands that the help of each shows."""

NOT_IN_THE_IMAGE = ("optuna", "matplotlib")
"""Packages that only sweeps and plots need: the image of the api and the trainer is without them."""

EXTRAS = {"onnx": "onnx==1.23.2"}
"""Packages that only one format of an export needs, with the version that the tests have: no image has them."""


def main(argv: list[str] | None = None, prog: str = "python -m model") -> int:
    """Run a command and return its exit code.

    Args:
        argv: The arguments after the program's name; those of the process when None.
        prog: The program's name in help and usage texts.

    Returns:
        0 on success, 130 after Ctrl-C; after an error, which is printed in one line, 2 where a setting cannot be used
        and 1 for everything else.

    Raises:
        SystemExit: The parser refused an argument (exit code 2), or printed the help.
    """
    try:
        args = parser(prog).parse_args(argv)
        return int(args.run(args) or 0)
    except ModelError as e:
        print(f"error: {e}", file=sys.stderr)
        return USAGE_ERROR if isinstance(e, ConfigError) else 1
    except ModuleNotFoundError as e:
        name = (e.name or "").partition(".")[0]
        if name in EXTRAS:
            hint = f"install it with pip install {EXTRAS[name]}"
        elif name in NOT_IN_THE_IMAGE:
            hint = "in containers: docker compose run --rm sweep"
        else:
            raise
        print(f"error: this command needs {name}, which is not installed here; {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parser(prog: str = "python -m model") -> argparse.ArgumentParser:
    """Return the parser of all commands; `args.run(args)` runs the one that was parsed."""
    result = ArgumentParser(prog=prog, description="Train, sample and measure character-level LSTMs.")
    add_commands(result.add_subparsers(required=True, metavar=" | ".join(COMMANDS)))
    return result


def parsers(prog: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, by its name."""
    subparsers = ArgumentParser(prog=prog).add_subparsers()
    add_commands(subparsers)
    return dict(subparsers.choices)


def add_commands(subparsers: argparse._SubParsersAction[ArgumentParser]) -> None:
    """Add every command to another program's subparsers."""
    from model.cli import info, sample, score, sweep, train  # torch takes a second to load
    from model.cli.exchange import export, import_model
    from model.cli.reports import plot, report

    modules = {
        "train": train,
        "sample": sample,
        "score": score,
        "sweep": sweep,
        "plot": plot,
        "report": report,
        "info": info,
        "export": export,
        "import": import_model,
    }
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        modules[name].configure(command)
        positionals = [a for a in command._actions if not a.option_strings]
        displayed = "".join(f" [{action.metavar or action.dest}]" for action in positionals)
        command.usage = f"%(prog)s{displayed} [options]"
        if name in EXAMPLES:
            command.epilog = "examples:\n" + "\n".join(f"  {subparsers._prog_prefix} {e}" for e in EXAMPLES[name])
        command.set_defaults(run=modules[name].run)
