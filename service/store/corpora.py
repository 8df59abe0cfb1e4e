"""Training texts in a folder: streamed in, checked as they come, there whole or not at all.

    {name}        the text as it was sent
    .{name}.json  what was found while it came: bytes, characters, which ones; made anew when it does not fit the text

`shakespeare` is always there, and is no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.atomic_files import atomic_write
from model.errors import TextError
from model.text.decoding import TextDecoder, read_text
from model.text.default_text import default_text
from model.text.text_statistics import TextStatistics, text_sha256
from service.errors import BadRequest, BodyTooLarge, CorpusConflict, UnknownCorpus

BUILT_IN = "shakespeare"
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_CHUNK = 1 << 20


class Corpora:
    """The texts that a model can be trained on, by name."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def put(self, name: str, read: Callable[[int], bytes], *, only_new: bool = False) -> tuple[dict[str, Any], bool]:
        """Store a text as it is read: what it is, and whether the name is new.

        Raised: BadRequest for a name or bytes that are no text, BodyTooLarge, CorpusConflict.
        """
        path = self._path(name)
        if name == BUILT_IN:
            raise CorpusConflict(f"{name}: is built in and cannot be replaced; choose another name")
        existed = path.exists()
        if existed and only_new:
            raise CorpusConflict(f"{name}: is there already; without If-None-Match it would be replaced")
        scan = _Scan(name)
        with atomic_write(path) as file:
            while chunk := read(_CHUNK):
                if scan.n_bytes + len(chunk) > self._max_bytes:
                    raise too_large(self._max_bytes)
                scan.update(chunk)
                file.write(chunk)
            scan.update(b"", final=True)
        return {"name": name, **_shown(self._remember(path, scan))}, not existed

    def get(self, name: str) -> dict[str, Any]:
        """What a corpus is. Raised: BadRequest, UnknownCorpus."""
        return {"name": name, **_shown(self.facts(name))}

    def listing(self) -> list[dict[str, Any]]:
        listed = [self.get(BUILT_IN)]
        for path in sorted(self._folder.glob("[a-z0-9]*")) if self._folder.is_dir() else []:
            if re.fullmatch(NAME, path.name) and path.is_file() and path.name != BUILT_IN:
                try:
                    listed.append(self.get(path.name))
                except (BadRequest, UnknownCorpus) as e:
                    listed.append({"name": path.name, "error": str(e)})
        return listed

    def delete(self, name: str) -> None:
        """Raised: BadRequest, UnknownCorpus, CorpusConflict."""
        path = self._path(name)
        if name == BUILT_IN:
            raise CorpusConflict(f"{name}: is built in and cannot be deleted")
        try:
            path.unlink()
        except FileNotFoundError:
            raise UnknownCorpus(f"{name}: no such corpus; GET /corpora lists them") from None
        _beside(path).unlink(missing_ok=True)

    def text(self, name: str) -> tuple[str, list[str]]:
        """The text with plain newlines, and notes on what was normalised. Raised: as `get`, and TextError."""
        if name == BUILT_IN:
            return default_text(), []
        path = self._path(name)
        if not path.is_file():
            raise UnknownCorpus(f"{name}: no such corpus; GET /corpora lists them")
        return read_text(path)

    def facts(self, name: str) -> dict[str, Any]:
        """n_bytes, n_characters, characters (the distinct ones, in order), sha256 of the normalised text, notes."""
        if name == BUILT_IN:
            return _built_in()
        path = self._path(name)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise UnknownCorpus(f"{name}: no such corpus; GET /corpora lists them") from None
        try:
            found: dict[str, Any] = json.loads(_beside(path).read_bytes())
            if found["of"] == [stat.st_mtime_ns, stat.st_size]:
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass
        scan = _Scan(name)
        with open(path, "rb") as f:
            while chunk := f.read(_CHUNK):
                scan.update(chunk)
        scan.update(b"", final=True)
        return self._remember(path, scan)

    def _remember(self, path: Path, scan: _Scan) -> dict[str, Any]:
        stat = path.stat()
        found = {**scan.facts(), "of": [stat.st_mtime_ns, stat.st_size], "put": stat.st_mtime}
        with atomic_write(_beside(path)) as file:
            file.write(json.dumps(found).encode())
        return found

    def _path(self, name: str) -> Path:
        if not re.fullmatch(NAME, name):
            raise BadRequest("name", name, NAME)
        return self._folder / name


class _Scan:
    """Decode a corpus as its bytes arrive, and collect what is known of it."""

    def __init__(self, name: str) -> None:
        self._decoder = TextDecoder(f"corpus {name}")
        self._statistics = TextStatistics()

    @property
    def n_bytes(self) -> int:
        """The number of bytes so far."""
        return self._decoder.n_bytes

    def update(self, chunk: bytes, *, final: bool = False) -> None:
        """Add the next bytes.

        Raises:
            BadRequest: They are not UTF-8, or the text ends and is empty.
        """
        try:
            self._statistics.update(self._decoder.decode(chunk, final=final))
        except TextError as e:
            raise BadRequest("body", e.problem, e.expected, problem=f"{e.field}: {e.problem}") from e

    def facts(self) -> dict[str, Any]:
        """Return what is known of the corpus, as JSON. Complete after the final update."""
        return {
            "bytes": self.n_bytes,
            "n_characters": self._statistics.n_characters,
            "characters": self._statistics.characters,
            "sha256": self._statistics.sha256,
            "notes": self._decoder.notes,
        }


@lru_cache(maxsize=1)
def _built_in() -> dict[str, Any]:
    text = default_text()
    return {
        "bytes": len(text.encode()),
        "n_characters": len(text),
        "characters": "".join(sorted(set(text))),
        "sha256": text_sha256(text),
        "notes": [],
        "put": None,
    }


def too_large(limit: int, size: int | None = None) -> BodyTooLarge:
    got = f"{size} bytes" if size is not None else "more"
    return BodyTooLarge("body", size, f"at most {limit} bytes", problem=f"got {got}")


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "bytes": facts["bytes"],
        "characters": facts["n_characters"],
        "distinct": len(facts["characters"]),
        "sha256": facts["sha256"],
        "notes": facts["notes"],
        "put": facts["put"],
    }


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")
