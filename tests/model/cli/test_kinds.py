"""A model of a list and one of a text: at the command line, too, neither takes the place of the other by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoints import file_format, names, registry
from model.cli import main
from tests.model.cli.test_lists import NAMES, TRAIN, output

TEXT = "KING.\nTo be, or not to be: that is the question.\n\nQUEEN.\nIt is not.\n\n" * 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text, a list, and a store whose promoted model is of the text."""
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "king.txt").write_text(TEXT)
    assert main(["train", str(tmp_path / "king.txt"), "--out", str(tmp_path / "models"), *TRAIN]) == 0
    return tmp_path


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_list_does_not_replace_a_text(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is saved and not promoted, with what to do instead; --promote promotes it."""
    store = folder / "models"
    before = registry.promoted_path(store)
    arguments = ["train", str(folder / "names.txt"), "--items", "lines", "--out", str(store), *TRAIN]
    if command == "sweep":
        arguments = ["sweep", *arguments[1:], "--runs", "1", "--minutes", "0.05"]
    out, _ = output(arguments, capsys)
    assert registry.promoted_path(store) == before
    assert "not promoted: not comparable: the new model is of a list and the promoted one of a text" in out
    assert "--model NAME" in out
    out, _ = output([*arguments, "--promote"], capsys)
    assert "promoted: it will be served" in out
    promoted = registry.promoted_path(store)
    assert promoted is not None
    assert file_format.read_info(promoted).val_protocol == "items"
    out, _ = output(["train", str(folder / "king.txt"), "--out", str(store), *TRAIN], capsys)
    assert "the new model is of a text and the promoted one of a list" in out
    assert registry.promoted_path(store) == promoted


def test_a_model_by_name_has_a_store_of_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, sample, score and info use it; the default model stays; a name that is none is refused."""
    store = folder / "models"
    before = registry.promoted_path(store)
    arguments = ["train", str(folder / "names.txt"), "--items", "lines", "--out", str(store), "--model", "names"]
    out, _ = output([*arguments, *TRAIN], capsys)
    assert "promoted: it will be served" in out
    assert registry.promoted_path(store) == before
    named = registry.promoted_path(names.store_folder(store, "names"))
    assert named is not None
    of_names = ["--store", str(store), "--model", "names"]
    assert str(named) in output(["info", *of_names], capsys)[0].replace("\n", "")
    assert len(output(["sample", "--items", "5", *of_names], capsys)[0].splitlines()) == 5
    assert "bits per item" in output(["score", str(folder / "names.txt"), *of_names], capsys)[0]
    with pytest.raises(SystemExit):
        main(["info", "--model", "../elsewhere"])
    assert "expected a name that matches" in capsys.readouterr().err
