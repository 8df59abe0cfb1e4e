"""The help: groups, choices, the presets' own defaults, examples that work; completion; one set of defaults."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from model import cli
from model.config import PRESETS
from model.network.sampling import DEFAULT_CHARS, SamplingParams
from service.__main__ import parser as serve_parser
from service.cli import main
from service.schemas import GenerateRequest
from tests.servers import ROOT


@pytest.mark.parametrize("command", cli.EXAMPLES)
def test_the_examples_of_the_help_can_be_parsed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They are shown, and each is a command that the parser accepts."""
    parser = cli.parser("longhand")
    with pytest.raises(SystemExit):
        parser.parse_args([command, "--help"])
    displayed = capsys.readouterr().out
    for example in cli.EXAMPLES[command]:
        assert f"longhand {example}" in displayed
        assert parser.parse_args(shlex.split(example)).run


def test_the_help_lists_choices_groups_and_the_presets_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """What `quick` uses is what the help says of it; every option with choices shows them."""
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["train", "--help"])
    displayed = " ".join(capsys.readouterr().out.split())
    assert f"quick: {PRESETS['quick']['n_hidden']}, standard: {PRESETS['standard']['n_hidden']}" in displayed
    assert f"quick: {PRESETS['quick']['lr']:g}, " in displayed
    for text in ("the network:", "the training:", "lists:", "--long-items {refuse,cut,skip}", "--lr N"):
        assert text in displayed
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["sample", "--help"])
    sample = capsys.readouterr().out
    for group in ("the model:", "sampling:", "lists:"):
        assert f"\n{group}\n" in sample


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_shell_completes(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands, options of a command, and the choices of an option, as the shell itself would offer them."""
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as main does; undone after the test
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    if shell == "zsh":
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
        return
    for typed, expected in (
        (["longhand", "sa"], ["sample"]),
        (["longhand", "train", "--prese"], ["--preset"]),
        (["longhand", "train", "--preset", ""], list(PRESETS)),
        (["longhand", "serve", "--cor"], ["--corpus"]),
    ):
        words = " ".join(map(shlex.quote, typed))
        probe = (
            f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _longhand_complete; echo ${{COMPREPLY[@]}}"
        )
        done = subprocess.run([shell, "-c", probe], capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected


def test_one_set_of_defaults() -> None:
    """Temperature, characters and minutes are the same in the API, on the page and at the command line."""
    request = GenerateRequest.model_validate({}).model_dump()
    sample = cli.parser().parse_args(["sample"])
    knobs = (ROOT / "service/page/knobs.js").read_text()
    temperature = SamplingParams().temperature
    assert (request["temperature"], sample.temperature) == (temperature, temperature)
    assert request["max_chars"] == DEFAULT_CHARS
    displayed = dict(re.findall(r'\[\s*"(\w+)",\s*"\w+",\s*"([\d.]*)"', knobs))
    assert float(displayed["temperature"]) == temperature
    assert int(displayed["max_chars"]) == DEFAULT_CHARS
    for name in ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty"):
        assert float(displayed[name]) == request[name]
    form = (ROOT / "service/page/training-form.js").read_text()
    minutes = {name: float(value) for name, value in re.findall(r'\s(\w+): \["(\d+)", "', form)}
    assert minutes == {name: preset["minutes"] for name, preset in PRESETS.items()}
    assert serve_parser().parse_args([]).minutes == PRESETS["quick"]["minutes"]
    assert re.search(r"^MINUTES \?= 3$", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("width", ["40", "100"])
@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_every_help_can_be_printed(
    command: str, width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No help text has a percent sign that argparse would take for a placeholder, at any width of the terminal."""
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as exit_status:
        cli.main([*command.split(), "--help"])
    assert exit_status.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("width", ["40", "100"])
def test_the_help_of_the_service_can_be_printed(
    width: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`longhand`, `longhand serve` and `longhand doctor`."""
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert main(["--help"]) == 0
    for command in ("serve", "doctor"):
        with pytest.raises(SystemExit) as exit_status:
            main([command, "--help"])
        assert exit_status.value.code == 0
    assert capsys.readouterr().out.count("usage:") == 3
