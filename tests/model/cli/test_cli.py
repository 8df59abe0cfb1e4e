"""python -m model, as its user sees it."""

from __future__ import annotations

import random
import re
import shlex
import signal
from dataclasses import fields
from pathlib import Path

import pytest

from model.checkpoints.file_format import load
from model.checkpoints.registry import promoted_path
from model.cli import main, parser, train
from model.cli.training_console import GracefulInterrupt
from model.config import PRESETS, PROTOCOLS, ModelConfig, TrainConfig
from model.training.run_folder import Progress, RunFolder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = random.Random(0)
    file = tmp_path / "mine.txt"
    file.write_text("".join(rng.choice(["ab ", "cd\n", "efg "]) for _ in range(4000)))
    return file


def test_train_sample_info(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text becomes a promoted model; sample writes from it, the same for the same seed; info describes it."""
    out = tmp_path / "models"
    assert main(["train", str(text), "--out", str(out), "--steps", "30", "--n-hidden", "16", "--lr", "0.01"]) == 0
    output = capsys.readouterr().out
    path = promoted_path(out)
    assert path is not None
    assert "stateful protocol" in output
    assert str(path) in output
    texts = []
    for _ in range(2):
        assert main(["sample", "ab", "--store", str(out), "--max-chars", "40", "--seed", "5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2 + 40 + 1
    for form, pattern in (
        (["--regex", "[ab]{3,9}c?"], "[ab]{3,9}c?"),
        (["--choice", "abc", "--choice", "ba"], "abc|ba"),
    ):
        assert main(["sample", "ab", "--store", str(out), "--max-chars", "9", *form]) == 0
        assert re.fullmatch(pattern, capsys.readouterr().out.removeprefix("ab")[:-1])
    assert main(["sample", "ab", "--store", str(out), "--max-chars", "2", "--regex", "a{3}"]) == 1
    assert "--max-chars: got 2, expected at least 3" in capsys.readouterr().err
    assert main(["sample", "ab", "--store", str(out), "--json-schema", '{"type": "null"}']) == 1
    assert "the model's vocabulary lacks" in capsys.readouterr().err
    assert main(["info", "--store", str(out)]) == 0
    output = capsys.readouterr().out
    for part in ("lstm, 1 x 16", "stateful protocol", "n_hidden" not in output and "steps=30", "sha256"):
        assert str(part) in output


TRAIN = ["--steps", "40", "--n-hidden", "16", "--lr", "0.01", "--validations", "4"]


def test_a_run_leaves_metrics_and_curves(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run has a folder with its settings and losses, drawn by `plot` as SVG or PNG."""
    out = tmp_path / "models"
    assert main(["train", str(text), "--out", str(out), *TRAIN]) == 0
    output = capsys.readouterr().out
    (run,) = (out / "runs").iterdir()
    assert f"plot {run}" in output
    assert "advice" in output
    assert len([m for m in RunFolder(run).metrics() if m["val_loss"] is not None]) == 4
    assert main(["plot", str(run)]) == 0
    assert (run / "curves.svg").read_text().startswith("<?xml")
    assert main(["plot", str(run), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["plot", str(run), "--out", "c.pdf"]) == 2
    assert "expected a file that ends in .svg or .png" in capsys.readouterr().err


def test_several_texts_small_texts_and_large_alphabets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any texts can be trained on with settings that fit them: the output says which, and a resumed run keeps them."""
    out = tmp_path / "models"
    small, alphabet = tmp_path / "small.txt", tmp_path / "alphabet.txt"
    small.write_text("To be, or not to be. " * 15)
    alphabet.write_text("".join(chr(0x4E00 + i % 4500) for i in range(9000)))
    quick = ["--out", str(out), "--n-hidden", "16", "--steps", "4"]
    assert main(["train", str(small), *quick]) == 0
    note = "note: batch_size is 8 instead of 16: the training part has 284 characters"
    assert note in capsys.readouterr().out
    assert main(["train", str(small), str(alphabet), *quick]) == 0
    output = capsys.readouterr().out
    assert "9,315 characters, 4510 distinct" in output
    assert "note: max_vocab is 4,510 instead of 4,096: the text has 4,510 distinct characters" in output
    run = max((out / "runs").iterdir())
    assert main(["train", "--resume", str(run), "--out", str(out)]) == 0
    assert "9,315 characters" in capsys.readouterr().out
    assert main(["sweep", str(small), "--out", str(out), "--runs", "1", "--minutes", "0.05"]) == 0
    assert note in capsys.readouterr().out


def test_ctrl_c_prints_how_to_resume(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupt saves the run and prints the command to resume it; that command alone finishes the run."""
    out, before = tmp_path / "models", signal.getsignal(signal.SIGINT)
    call = GracefulInterrupt.__call__

    def press(self: GracefulInterrupt, report: Progress) -> None:
        if report.step == 20:
            signal.raise_signal(signal.SIGINT)
        call(self, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GracefulInterrupt, "__call__", press)
        assert main(["train", str(text), "--out", str(out), *TRAIN]) == 0
    output = capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    (command,) = re.findall(r"to resume: python -m model (train --resume \S+)", output)
    assert main(command.split()) == 0
    assert "step 40" in capsys.readouterr().out
    path = promoted_path(out)
    assert path is not None
    assert load(path).step == 40
    assert main([*command.split(), "--lr", "0.5", "--n-hidden", "8"]) == 2
    output = capsys.readouterr().err
    assert "n_hidden is 16 in the run, 8 now; lr is 0.01 in the run, 0.5 now" in output


def interrupted_run(out: Path, text: Path, *options: str) -> str:
    """Train until Ctrl-C at step 20, and return the run's folder."""
    call = GracefulInterrupt.__call__

    def press(self: GracefulInterrupt, report: Progress) -> None:
        if report.step == 20:
            signal.raise_signal(signal.SIGINT)
        call(self, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GracefulInterrupt, "__call__", press)
        assert main(["train", str(text), "--out", str(out), *TRAIN, *options]) == 0
    (run,) = (out / "runs").iterdir()
    return str(run)


def test_the_resume_command_keeps_the_options(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--no-promote, and a folder with a space in its name, are in the printed command; it runs as it is printed."""
    out = tmp_path / "my models"
    run = interrupted_run(out, text, "--no-promote")
    (command,) = re.findall(r"to resume: python -m model (.*)", capsys.readouterr().out)
    assert shlex.split(command) == ["train", "--resume", run, "--no-promote"]
    assert main(shlex.split(command)) == 0
    assert promoted_path(out) is None


def test_the_resume_command_of_a_gpu_run(tmp_path: Path) -> None:
    """The device is in the command: the run would not be the same on another one."""
    arguments = parser().parse_args(["train", "--device", "cuda"])
    assert train._resume_options(arguments, "cuda:0") == ["--device", "cuda"]
    assert train._resume_options(arguments, "cpu") == []


@pytest.mark.parametrize("device", [[], ["--device", "cpu"], ["--device", "auto"]])
def test_a_gpu_run_on_a_cpu_names_the_way(
    device: list[str], tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optimizer state is of another arithmetic; the command with its weights is printed, and works."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = interrupted_run(tmp_path / "models", text)
    settings = Path(run) / "run.json"
    settings.write_text(settings.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    capsys.readouterr()
    assert main(["train", "--resume", run, *device]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "was started on cuda" in error if not device else "device is 'cuda' in the run, 'cpu' now" in error
    (command,) = re.findall(r"begin a new run with its weights: python -m model (train .*)", error)
    assert main([*shlex.split(command), "--steps", "5", "--out", str(tmp_path / "more")]) == 0
    assert promoted_path(tmp_path / "more") is not None


def test_more_steps_than_the_run_had_name_the_way(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--resume RUN --steps 400: the learning rate has ended at zero, so the printed command begins a new run."""
    out = tmp_path / "models"
    assert main(["train", str(text), "--out", str(out), *TRAIN]) == 0
    (run,) = (out / "runs").iterdir()
    capsys.readouterr()
    for more in (["--steps", "400"], ["--steps", "0", "--minutes", "2"], ["--epochs", "2"]):
        assert main(["train", "--resume", str(run), *more]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert "cannot be resumed with other settings" in error
        (command,) = re.findall(r"begin a new run with its weights: python -m model (train .*)", error)
    best = promoted_path(out)
    assert best is not None
    assert shlex.split(command) == ["train", str(text), "--warm-start", str(best)]
    assert main([*shlex.split(command), "--steps", "20", "--out", str(tmp_path / "more")]) == 0


def test_scores_by_protocol(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each loss is printed with its protocol; a test part is measured once, after the run, and by request."""
    out = tmp_path / "models"
    assert main(["train", str(text), "--out", str(out), *TRAIN, "--test-fraction", "0.1"]) == 0
    trained = capsys.readouterr().out
    assert "test    (stateful)" in trained
    assert main(["score", str(text), "--store", str(out), "--protocols", "windowed,stateful,dynamic"]) == 0
    output = capsys.readouterr().out
    path = promoted_path(out)
    assert path is not None
    assert f"(stateful) {load(path).val_loss:.4f} nats" in output
    assert all(f"({protocol})" in output for protocol in PROTOCOLS)
    assert main(["score", str(text), "--store", str(out), "--part", "test", "--protocols", "b"]) == 0
    assert capsys.readouterr().out.split("nats")[0].split()[-1] in trained
    assert main(["score", str(text), "--store", str(out), "--precision", "int8"]) == 0
    assert float(capsys.readouterr().out.split("(stateful) ")[1].split()[0]) == pytest.approx(
        load(path).val_loss, abs=0.005
    )
    assert main(["score", str(text), "--store", str(out), "--protocols", "ab", "--precision", "int8"]) == 2
    assert "protocols: got 'ab', expected stateful with precision int8" in capsys.readouterr().err


def test_a_warm_start_begins_where_the_other_ended(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a checkpoint, on a text with a new character, the first validation is already near its loss."""
    assert main(["train", str(text), "--out", str(tmp_path / "a"), *TRAIN, "--steps", "300"]) == 0
    first = promoted_path(tmp_path / "a")
    assert first is not None
    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("g", "G"))
    few = ["--steps", "20", "--lr", "0.001", "--validations", "1"]
    for more in (["--warm-start", str(first)], ["--n-hidden", "16"]):
        assert main(["train", str(other), "--out", str(tmp_path / more[0][2:]), *few, *more]) == 0
    warm, cold = promoted_path(tmp_path / "warm-start"), promoted_path(tmp_path / "n-hidden")
    assert warm is not None
    assert cold is not None
    assert load(warm).val_loss < load(cold).val_loss - 0.5


def test_help_explains_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting is an option, with its default in each preset where they differ, and the words of a choice."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    for config in (ModelConfig, TrainConfig):
        for f in fields(config):
            if f.name != "vocab_size":
                assert "--" + f.name.replace("_", "-") in output
                by_preset = [f"{name}: {preset.get(f.name, f.default):g}" for name, preset in PRESETS.items()
                             if any(f.name in preset for preset in PRESETS.values())]  # fmt: skip
                assert (f"({', '.join(by_preset)})" if by_preset else f"(default {f.default})") in output, f.name
    assert "{quick,standard,best}" in output
    assert "{lstm,gru,rnn}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "none.txt"],
            "error: corpus none.txt: cannot be read (No such file or directory), expected a text file",
        ),
        (["train", "--resume", "none"], "error: run none: not a run's folder (["),
        (["sample", "--checkpoint", "none.safetensors"], "error: checkpoint none.safetensors: no such file"),
        (
            ["info", "--store", "nowhere"],
            "error: nowhere: no checkpoint has been promoted; train one with python -m model train",
        ),
    ],
)
def test_an_error_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 and one line on the standard error, no traceback; test_bad_values has the settings, which exit with 2."""
    assert main(arguments) == 1
    assert capsys.readouterr().err.strip().startswith(message)


def test_an_unknown_character_in_a_prompt_is_named(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt's characters are checked before anything is written."""
    out = tmp_path / "models"
    main(["train", str(text), "--out", str(out), "--steps", "5", "--n-hidden", "8"])
    assert main(["sample", "xyz", "--store", str(out)]) == 1
    assert "lacks 'x' (U+0078) at 0, 'y' (U+0079) at 1" in capsys.readouterr().err
