"""Training texts in a folder: streamed in, checked as they come, there whole or not at all.

    {name}        the text as it was sent
    .{name}.json  what was found while it came: bytes, characters, which ones; made anew when it does not fit the text

`shakespeare` is always there, and is no file.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.text.corpus import read_text, text_sha256
from model.text.default_text import default_text
from service.errors import BadRequest, BodyTooLarge, CorpusConflict, UnknownCorpus

BUILT_IN = "shakespeare"
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_CHUNK = 1 << 20
_BOM_BYTES = 4
_OTHER_BOMS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


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
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{name}.{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "wb") as f:
                scan = _Scan(name)
                while chunk := read(_CHUNK):
                    if scan.n_bytes + len(chunk) > self._max_bytes:
                        raise too_large(self._max_bytes)
                    scan.feed(chunk)
                    f.write(chunk)
                scan.end()
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
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
                scan.feed(chunk)
        scan.end()
        return self._remember(path, scan)

    def _remember(self, path: Path, scan: _Scan) -> dict[str, Any]:
        stat = path.stat()
        found = {**scan.facts(), "of": [stat.st_mtime_ns, stat.st_size], "put": stat.st_mtime}
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.write_text(json.dumps(found))
        os.replace(temporary, _beside(path))
        return found

    def _path(self, name: str) -> Path:
        if not re.fullmatch(NAME, name):
            raise BadRequest(f"name: got {name[:80]!r}, expected {NAME}", field="name", value=name[:80], expected=NAME)
        return self._folder / name


class _Scan:
    """Reads a text's bytes as they come: whether they are UTF-8, and what is in them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._sha256 = hashlib.sha256()
        self._head: bytes | None = b""  # the first bytes, until there are enough to see a byte order mark
        self._decoded = 0  # bytes
        self._has_bom = self._after_cr = False
        self._n_crlf = self._n_cr = 0
        self._seen: set[str] = set()
        self.n_bytes = 0
        self.n_characters = 0

    def feed(self, chunk: bytes) -> None:
        """Raised: BadRequest with the offset of the first byte that is no UTF-8."""
        self.n_bytes += len(chunk)
        if self._head is not None:
            self._head += chunk
            if len(self._head) < _BOM_BYTES:
                return
            chunk = self._begin(self._head)
        self._decode(chunk)

    def end(self) -> None:
        """Raised: BadRequest when the text is empty, or ends within a character."""
        if self._head is not None:
            self._decode(self._begin(self._head))
        self._decode(b"", final=True)
        if not self.n_characters:
            raise self._wrong("is empty", ", expected text")

    def _begin(self, head: bytes) -> bytes:
        """Look for a byte order mark; what of these bytes is text."""
        self._head = None
        for bom, kind in _OTHER_BOMS:
            if head.startswith(bom):
                raise self._wrong(f"is {kind} (byte order mark at byte 0)", ", expected UTF-8")
        if head.startswith(codecs.BOM_UTF8):
            self._has_bom = True
            self._decoded = len(codecs.BOM_UTF8)
        return head[self._decoded :]

    def _decode(self, chunk: bytes, *, final: bool = False) -> None:
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as e:
            at, byte = self._decoded - held + e.start, e.object[e.start]
            raise self._wrong(f"not UTF-8, byte {at} is 0x{byte:02x} ({e.reason})", "; expected UTF-8 text") from None
        self._decoded += len(chunk)
        self._take(text)

    def facts(self) -> dict[str, Any]:
        notes = ["a byte order mark at the start was dropped"] if self._has_bom else []
        if self._n_crlf or self._n_cr:
            notes.append(f"line ends became \\n ({self._n_crlf} CR LF, {self._n_cr} CR)")
        return {
            "bytes": self.n_bytes,
            "n_characters": self.n_characters,
            "characters": "".join(sorted(self._seen)),
            "sha256": self._sha256.hexdigest(),
            "notes": notes,
        }

    def _take(self, text: str) -> None:
        if self._after_cr and text.startswith("\n"):  # a CR LF that was cut in two has been counted as a CR
            text = text[1:]
            self._n_cr -= 1
            self._n_crlf += 1
            self._after_cr = False
        if text:
            self._after_cr = text.endswith("\r")
        if "\r" in text:
            n_crlf = text.count("\r\n")
            self._n_crlf += n_crlf
            self._n_cr += text.count("\r") - n_crlf
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        self._seen.update(text)
        self.n_characters += len(text)
        self._sha256.update(text.encode())

    def _wrong(self, what: str, expected: str) -> BadRequest:
        message = f"corpus {self._name}: {what}{expected}"
        return BadRequest(message, field="body", value=what, expected=expected.partition("expected ")[2])


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
    return BodyTooLarge(
        f"body: got {got}, expected at most MAX_CORPUS_BYTES = {limit}",
        field="body", value=size, expected=f"at most {limit} bytes",
    )  # fmt: skip


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
