"""The command `longhand` of an installed Longhand: serve, doctor, and every command of `python -m model`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import model
from model import cli as model_cli

_COMMANDS = {
    "serve": "run the service on this machine, and train a first model when there is none",
    **model_cli.COMMANDS,
    "doctor": "check this machine and this installation, and say what is wrong",
    "completion": 'print a completion script: eval "$(longhand completion bash)", or zsh',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: The arguments after the program's name; those of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # The processes that are started run the same installation, whatever lies in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(_help())
        return 0
    if command in ("-V", "--version"):
        print(f"longhand {model.__version__}")
        return 0
    if command in model_cli.COMMANDS:
        return _model_command(arguments)
    commands: dict[str, Callable[[list[str]], int]] = {"serve": _serve, "doctor": _doctor, "completion": _completion}
    if command not in commands:
        given = f"unknown command {command!r}" if command else "a command is missing"
        print(f"longhand: {given}, expected one of {', '.join(_COMMANDS)}; longhand --help", file=sys.stderr)
        return 2
    return commands[command](arguments[1:])


def _help() -> str:
    width = max(map(len, _COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary}" for name, summary in _COMMANDS.items()]
    head = "usage: longhand COMMAND ...\n\nPrivate text generation: train a character-level LSTM, and serve it.\n\n"
    epilog = "\n\nlonghand COMMAND --help lists the options. Data lies in LONGHAND_HOME, by default ./data."
    return head + "\n".join(lines) + epilog


def _model_command(arguments: list[str]) -> int:
    from model.training.distributed import exit_process  # torch takes a second to load

    return exit_process(model_cli.main(arguments, prog="longhand"))


def _serve(arguments: list[str]) -> int:
    from service.__main__ import main as serve

    return serve(arguments, prog="longhand serve")


def _completion(arguments: list[str]) -> int:
    from model.cli.completion import SHELLS, script
    from service.__main__ import parser as serve_parser

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        print(f"longhand completion: expected one of {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    parsers = model_cli.parsers("longhand")
    print(script("longhand", arguments[0], {name: parsers.get(name) for name in _COMMANDS} | {"serve": serve_parser()}))
    return 0


def _doctor(arguments: list[str]) -> int:
    from service.operations.doctor import main as doctor

    return doctor(arguments)
