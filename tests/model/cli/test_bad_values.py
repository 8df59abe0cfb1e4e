"""Bad values at the command line: one line that names the option, the value and what is expected; exit code 2."""

from __future__ import annotations

import math
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from model.cli import COMMANDS, main, parser
from model.config import ModelConfig, TrainConfig
from model.network.sampling import MAX_SEED, SamplingParams

NO_NUMBERS = ("nan", "inf", "-inf", "many", "", "1e400", "-1", "1" * 5000)
FREE_TEXT = {
    "out",
    "store",
    "checkpoint",
    "resume",
    "warm_start",
    "corpus",
    "run_folder",
    "vocab",
}  # paths: any text may be one
NAMES = {"separator", "column", "group_column", "regex", "choice", "model"}  # any text may be one, or nearly any


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit code of a command, and its standard error."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as e:
        code = int(e.code or 0)
    return code, capsys.readouterr().err


def commands() -> dict[str, ArgumentParser]:
    (subparsers,) = (a for a in parser()._actions if isinstance(a, _SubParsersAction))
    return dict(subparsers.choices)


def options_with_values() -> Iterator[tuple[str, str]]:
    for command, arguments in commands().items():
        for action in arguments._actions:
            if action.option_strings and action.nargs != 0 and action.dest not in FREE_TEXT | NAMES:
                yield command, action.option_strings[-1]


@pytest.mark.parametrize(("command", "option"), sorted(options_with_values()))
def test_no_option_takes_nonsense(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of every command, numbers and words alike, refuses what it cannot use before any work is done."""
    refused = "\0" if option != "--out" else "c.pdf"
    values = ["::", "http://x"] if option in ("--storage", "--study") else [*NO_NUMBERS, refused]
    if option == "--storage":
        values.remove("::")
    if option in ("--frequency-penalty", "--presence-penalty"):
        values.remove("-1")  # they may be negative
    for value in values:
        text = [] if command != "plot" else ["/"]
        code, error = run([command, *text, f"{option}={value}"], capsys)
        assert code == 2, (value, error)
        assert error.startswith(f"error: {option}: got "), error
        assert ", expected " in error
        assert error.count("\n") == 1
        assert len(error) < 400


@pytest.mark.parametrize("f", [*fields(ModelConfig)[1:], *fields(TrainConfig)], ids=lambda f: f.name)
def test_the_bounds_are_those_of_the_configuration(f, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    """Just outside its declared range a setting is refused; at the limits it is accepted."""
    option = "--" + f.name.replace("_", "-")
    if "choices" in f.metadata:
        outside, inside = ["LSTM", "x"], list(f.metadata["choices"])
    else:
        low, high, is_integer = f.metadata["minimum"], f.metadata["maximum"], f.type == "int"
        below, above = (low - 1, high + 1) if is_integer else (math.nextafter(low, -1), math.nextafter(high, 1e9))
        exclusive = f.metadata["exclusive_minimum"]
        outside = [str(below), str(above), *([str(low)] if exclusive else []), *(["1.5"] if is_integer else [])]
        inside = [str(high), *([] if exclusive else [str(low)])]
    for value in outside:
        code, error = run(["train", "none.txt", f"{option}={value}"], capsys)
        assert (code, error.startswith(f"error: {option}: got {value!r}, expected ")) == (2, True), error
    for value in inside:
        _, error = run(["train", "none.txt", "--batch-size", "256", f"{option}={value}"], capsys)
        assert f"{option}:" not in error


@pytest.mark.parametrize("p", SamplingParams.fields(), ids=lambda p: p.name)
def test_the_bounds_of_sampling_are_those_of_a_request(p, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    """`sample` accepts what POST /generate accepts."""
    option = "--" + p.name.replace("_", "-")
    for value in (str(p.minimum - 1), str(p.maximum + 1), "nan"):
        assert run(["sample", "--checkpoint", "none", f"{option}={value}"], capsys)[0] == 2
    assert run(["sample", "--checkpoint", "none", option, str(p.maximum)], capsys)[0] == 1  # there is no such file
    assert run(["sample", "--checkpoint", "none", "--seed", str(MAX_SEED + 1)], capsys)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "none.txt", "--workers", "3"],
            "error: workers: got 3, expected a divisor of the 16 rows of a batch",
        ),
        (
            ["sweep", "none.txt", "--workers", "3"],
            "error: workers: got 3, expected a divisor of the 16 rows of a batch",
        ),
        (["train", "--bogus"], "error: unrecognized arguments: --bogus"),
        (["sample", "--seed"], "error: --seed: expected one argument"),
        (["plot"], "error: the following arguments are required: RUN"),
        (["trian"], "error: "),
    ],
)
def test_settings_that_do_not_go_together(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only several arguments together make wrong comes before the text is read, too."""
    code, error = run(arguments, capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_gpu_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--device cuda without a GPU is refused before the text is read; auto is the CPU."""
    assert run([command, "none.txt", "--device", "cuda"], capsys) == (
        2,
        "error: device: got 'cuda', expected cpu or auto, since torch finds no GPU on this machine\n",
    )
    assert run([command, "none.txt", "--device", "auto"], capsys)[0] == 1


def test_a_prompt_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt with bytes that are not UTF-8 is refused before anything is printed, without a traceback."""
    text = tmp_path / "text.txt"
    text.write_text("ab cd\n" * 2000)
    few = ["--steps", "5", "--n-hidden", "8", "--validations", "1", "--out", str(tmp_path)]
    assert main(["train", str(text), *few]) == 0
    code, error = run(["sample", "ab\udcff", "--store", str(tmp_path)], capsys)
    assert code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_bias_that_is_nested_too_deeply(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON that the parser cannot follow is a wrong value, not a fault."""
    code, error = run(["sample", "--logit-bias", '{"a":' * 20_000], capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: --logit-bias: got ")


def test_every_command_is_covered() -> None:
    """The parser has the commands that are listed."""
    assert set(commands()) == set(COMMANDS)
