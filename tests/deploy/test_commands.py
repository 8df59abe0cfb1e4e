"""Every command in the compose files, manifests and documents is one that the real parser accepts."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator

import pytest

import model.cli
import service.__main__
import service.jobs.__main__
from tests.deploy.files import COMPOSE, KUSTOMIZATIONS, compose, containers, rendered
from tests.servers import ROOT

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "model": model.cli.parser,
    "service": service.__main__.parser,
    "service.jobs": service.jobs.__main__.parser,
}
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile", ROOT / "deploy/Dockerfile"]
PLACEHOLDERS = {"N": "4", "M": "2", "NAME": "study", "URL": "redis://host", "RUN": "run", "CHECKPOINT": "c.safetensors"}


def in_compose() -> Iterator[tuple[str, list[str]]]:
    for path in COMPOSE:
        for name, spec in (compose(path).get("services") or {}).items():
            for command in (spec.get("command"), (spec.get("healthcheck") or {}).get("test")):
                if isinstance(command, list):
                    yield f"{path.name}:{name}", [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in command]


def in_manifests() -> Iterator[tuple[str, list[str]]]:
    for folder in KUSTOMIZATIONS:
        for container in containers(rendered(folder)):
            probes = [container.get(f"{kind}Probe") or {} for kind in ("liveness", "readiness", "startup")]
            commands = [probe.get("exec", {}).get("command") for probe in probes]
            commands.append([*container.get("command", []), *container.get("args", [])])
            for command in commands:
                if command:
                    yield f"{folder.name}:{container['name']}", command


def in_documents() -> Iterator[tuple[str, list[str]]]:
    for path in DOCUMENTS:
        quoted = re.findall(r"`([^`\n]*-m (?:model|service)[^`\n]*)`", path.read_text())
        plain = re.findall(r"^(?: {4}|\$ |\t@?|.*&& )(.*-m (?:model|service)\b.*)$", path.read_text(), re.MULTILINE)
        for command in [*quoted, *([] if path.suffix == ".md" and not plain else plain)]:
            if "|" not in command and "..." not in command:
                plain_command = re.sub(r"\$\(if .*?\)|\"?\$\$@\"?|[;&>\\].*|#.*", "", command)
                words = shlex.split(plain_command.replace("$(MINUTES)", "3").rstrip(" \\"))
                yield f"{path.name}", [PLACEHOLDERS.get(word, word) for word in words if word]


def program_of(command: list[str]) -> tuple[str, list[str]] | None:
    """Return the module that a command runs and its arguments; None for other programs."""
    for i, word in enumerate(command[:-1]):
        if word == "-m" and command[i + 1] in PARSERS:
            return command[i + 1], command[i + 2 :]
    return None


COMMANDS = [
    pytest.param(*program, id=f"{where}: {' '.join(command)}"[:100])
    for where, command in [*in_compose(), *in_manifests(), *in_documents()]
    if (program := program_of(command)) is not None
]


@pytest.mark.parametrize(("module", "arguments"), COMMANDS)
def test_the_parser_accepts_it(module: str, arguments: list[str]) -> None:
    """No unknown option, no value that is out of range, no storage of another kind."""
    arguments = [argument for argument in arguments if argument != "--help"]
    if arguments or module != "model":  # without a command it is the program's name in a sentence
        PARSERS[module]().parse_args(arguments)


def test_all_kinds_of_files_have_commands() -> None:
    """The search above finds something in each kind of file: it can fail."""
    for result in (in_compose(), in_manifests(), in_documents()):
        assert any(program_of(command) for _, command in result)


@pytest.mark.parametrize("module", ["service", "service.jobs"])
@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf", "x", "1e9"])
def test_minutes_out_of_range(module: str, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The service's programs refuse a wrong value in the words of the training's command line, with exit code 2."""
    with pytest.raises(SystemExit) as error:
        PARSERS[module]().parse_args([f"--minutes={minutes}"])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message == f"error: --minutes: got {minutes!r}, expected a number above 0, at most 100000\n"
