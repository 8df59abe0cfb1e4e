"""python -m model, as a person at a terminal meets it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model.__main__ import main
from model.checkpoint import promoted


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = random.Random(0)
    file = tmp_path / "mine.txt"
    file.write_text("".join(rng.choice(["ab ", "cd\n", "efg "]) for _ in range(4000)))
    return file


def test_train_sample_info(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text becomes a promoted model; sample writes from it, the same for the same seed; info tells what it is."""
    out = tmp_path / "models"
    assert main(["train", str(text), "--out", str(out), "--steps", "30", "--n-hidden", "16", "--lr", "0.01"]) == 0
    said = capsys.readouterr().out
    path = promoted(out)
    assert path is not None
    assert "protocol (b)" in said
    assert str(path) in said
    texts = []
    for _ in range(2):
        assert main(["sample", "ab", "--store", str(out), "--max-chars", "40", "--seed", "5"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2 + 40 + 1
    assert main(["info", "--store", str(out)]) == 0
    said = capsys.readouterr().out
    for part in ("lstm, 1 x 16", "protocol (b)", "n_hidden" not in said and "steps=30", "sha256"):
        assert str(part) in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["train", "none.txt"],
            "error: corpus none.txt: cannot be read (No such file or directory), expected a text file",
        ),
        (["train", "none.txt", "--lr", "-1"], "error: lr: got -1.0, expected a number above 0 to 1"),
        (["sample", "--checkpoint", "none.safetensors"], "error: checkpoint none.safetensors: no such file"),
        (
            ["info", "--store", "nowhere"],
            "error: nowhere: nothing has been promoted; python -m model train makes a model",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 and one line on the standard error, no traceback."""
    assert main(arguments) == 1
    assert capsys.readouterr().err.strip() == says


def test_an_unknown_character_in_a_prompt_is_said(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt's characters are checked before anything is written."""
    out = tmp_path / "models"
    main(["train", str(text), "--out", str(out), "--steps", "5", "--n-hidden", "8"])
    assert main(["sample", "xyz", "--store", str(out)]) == 1
    assert "lacks 'x' (U+0078) at 0, 'y' (U+0079) at 1" in capsys.readouterr().err
