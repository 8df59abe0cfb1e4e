"""Training texts in a folder: decoded while they are uploaded, and stored complete or not at all.

    {name}        the text as it was uploaded
    .{name}.json  its statistics, which are computed again when they do not belong to the file as it is now
    .{name}.layout  how its items lie, where the upload said so: layouts by the hash of the text that each belongs to

The corpus `shakespeare` is built in and always there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.atomic_files import atomic_write
from model.errors import StorageError, TextError
from model.text.decoding import TextDecoder, read_text
from model.text.default_text import default_text
from model.text.items.detection import SAMPLE_CHARS, detect
from model.text.items.layout import TABLES, TEXT, ItemLayout
from model.text.items.reading import items_of
from model.text.items.splitting import SplittableItems
from model.text.normalization import NORMALIZATION
from model.text.text_statistics import TextStatistics, text_sha256
from service.errors import BadRequest, BodyTooLarge, CorpusConflict, UnknownCorpus

BUILT_IN = "shakespeare"
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
MAX_PREVIEW_BYTES = 4 * 2**20
"""The largest body of a preview, whose temporary file may lie in memory. The beginning of a large text suffices."""
_CHUNK_BYTES = 1 << 20
_MAX_COUNTED_BYTES = 4 * 2**20  # of lists whose items are counted when they are uploaded: half a second
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CorpusInfo:
    """The statistics of a corpus."""

    name: str
    n_bytes: int
    n_characters: int
    alphabet: str  # the distinct characters, in order
    sha256: str  # of the decoded text
    notes: list[str]  # what was changed while the text was decoded, and what is known of the items of a list
    modified_at: float | None  # Unix seconds; None for the built-in corpus
    layout: dict[str, Any] = field(default_factory=TEXT.as_dict)  # how it is read: as a text, or as items
    is_declared: bool = False  # whether the upload said so; else it was detected

    def as_dict(self) -> dict[str, Any]:
        """Return what clients get."""
        return {
            "name": self.name,
            "bytes": self.n_bytes,
            "characters": self.n_characters,
            "distinct_characters": len(self.alphabet),
            "sha256": self.sha256,
            "notes": self.notes,
            "layout": self.layout,
            "layout_source": "declared" if self.is_declared else "detected",
            "modified_at": self.modified_at,
        }


class Corpora:
    """The corpora that a model can be trained on, by name.

    Every method that takes a name raises BadRequest when it does not match NAME.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Use a folder, which is created by the first upload.

        Args:
            folder: Where the corpora are stored.
            max_bytes: The largest size of one corpus.
        """
        self._folder = folder
        self._max_bytes = max_bytes

    def put(
        self,
        name: str,
        read: Callable[[int], bytes],
        *,
        only_new: bool = False,
        layout: ItemLayout | None = None,
    ) -> tuple[CorpusInfo, bool]:
        """Store a corpus while it is read.

        Args:
            name: The corpus.
            read: Returns at most so many of the next bytes; none at the end.
            only_new: Whether an existing corpus must not be replaced.
            layout: How the items of a list lie in it; None: it is detected.

        Returns:
            The corpus, and whether its name is new.

        Raises:
            BadRequest: The bytes are not UTF-8 text, or not items as the layout says.
            BodyTooLarge: They are more than allowed.
            CorpusConflict: The corpus exists and must not be replaced.
            StorageError: It cannot be written; a corpus of this name is unchanged.
        """
        path = self._path(name)
        if name == BUILT_IN:
            raise CorpusConflict(f"corpus {name}: built in, cannot be replaced; choose another name")
        existed = path.exists()
        if existed and only_new:
            raise CorpusConflict(f"corpus {name}: exists already; send it without If-None-Match to replace it")
        scan = _Scan(name)
        with atomic_write(path) as file:
            while chunk := read(_CHUNK_BYTES):
                if scan.n_bytes + len(chunk) > self._max_bytes:
                    raise BodyTooLarge(self._max_bytes)
                scan.update(chunk)
                file.write(chunk)
            scan.update(b"", final=True)
            file.flush()
            scan.read_items(Path(file.name), layout)
            if layout is not None:
                self._declare(path, scan)
        if layout is None:
            _layout_path(path).unlink(missing_ok=True)
        return self._store_info(path, scan), not existed

    def preview(self, name: str, read: Callable[[int], bytes], layout: ItemLayout | None = None) -> CorpusInfo:
        """Return what the statistics of a text would be. Nothing is stored.

        Args:
            name: The corpus that it would be; the ending of a file's name is a hint for tables.
            read: Returns at most so many of the next bytes; none at the end.
            layout: As for `put`.

        Raises:
            BadRequest: The bytes are not UTF-8 text, or not items as the layout says.
            BodyTooLarge: They are more than MAX_PREVIEW_BYTES.
            StorageError: The temporary file cannot be written.
        """
        scan = _Scan(self._path(name).name)
        max_bytes = min(self._max_bytes, MAX_PREVIEW_BYTES)
        try:
            with tempfile.NamedTemporaryFile() as file:
                while chunk := read(_CHUNK_BYTES):
                    if scan.n_bytes + len(chunk) > max_bytes:
                        raise BodyTooLarge(max_bytes)
                    scan.update(chunk)
                    file.write(chunk)
                scan.update(b"", final=True)
                file.flush()
                scan.read_items(Path(file.name), layout)
        except OSError as e:
            raise StorageError(f"a preview cannot be written ({e.strerror})", field="temporary folder") from e
        return scan.info(name, None)

    def get(self, name: str) -> CorpusInfo:
        """Return the statistics of a corpus.

        Raises:
            UnknownCorpus: There is no such corpus.
            BadRequest: It was changed by hand and is not UTF-8 text any more.
        """
        if name == BUILT_IN:
            return _built_in()
        path = self._path(name)
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise _unknown(name) from None
        return _stored_info(path, stat) or self._scan_file(path)

    def names(self) -> list[str]:
        """Return the names of all corpora, the built-in one first."""
        return [BUILT_IN, *(path.name for path in self._paths())]

    def listing(self) -> list[dict[str, Any]]:
        """Return what clients get of all corpora; one that cannot be used has an `error`."""
        listed = []
        for name in self.names():
            try:
                listed.append(self.get(name).as_dict())
            except (BadRequest, UnknownCorpus, StorageError) as e:
                listed.append({"name": name, "error": str(e)})
        return listed

    def delete(self, name: str) -> None:
        """Delete a corpus.

        Raises:
            UnknownCorpus: There is no such corpus.
            CorpusConflict: It is built in.
        """
        path = self._path(name)
        if name == BUILT_IN:
            raise CorpusConflict(f"corpus {name}: built in, cannot be deleted")
        try:
            path.unlink()
            _info_path(path).unlink(missing_ok=True)
            _layout_path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            raise _unknown(name) from None
        except OSError as e:
            raise StorageError(f"cannot be deleted ({e.strerror})", field=f"corpus {name}") from e

    def source(self, name: str) -> Path | str:
        """Return the file of a corpus, or the text of the built-in one: what `read_corpora` reads.

        Raises:
            UnknownCorpus: There is no such corpus, or the built-in one cannot be had.
        """
        if name == BUILT_IN:
            return _built_in_text()
        path = self._path(name)
        if not path.is_file():
            raise _unknown(name)
        return path

    def _scan_file(self, path: Path) -> CorpusInfo:
        scan = _Scan(path.name)
        try:
            with open(path, "rb") as f:
                while chunk := f.read(_CHUNK_BYTES):
                    scan.update(chunk)
        except OSError as e:
            raise StorageError(f"cannot be read ({e.strerror})", field=f"corpus {path.name}") from e
        scan.update(b"", final=True)
        scan.read_items(path, _declared_layouts(path).get(scan.sha256))
        return self._store_info(path, scan)

    def _declare(self, path: Path, scan: _Scan) -> None:
        """Store the layout of a text that takes its place next, beside that of the text which is there until then."""
        layouts = {scan.sha256: scan.layout.as_dict()}
        with contextlib.suppress(BadRequest, UnknownCorpus, StorageError):
            before = self.get(path.name)
            if before.is_declared and before.sha256 != scan.sha256:
                layouts[before.sha256] = before.layout
        with atomic_write(_layout_path(path)) as file:
            file.write(json.dumps(layouts).encode())

    def _store_info(self, path: Path, scan: _Scan) -> CorpusInfo:
        stat = path.stat()
        info = scan.info(path.name, stat.st_mtime)
        stored = {**asdict(info), "file": _identity(stat), "normalization": NORMALIZATION}
        # Only a cache: without it, on a full or read-only disk, the file is scanned again.
        with contextlib.suppress(StorageError), atomic_write(_info_path(path)) as file:
            file.write(json.dumps(stored).encode())
        return info

    def _paths(self) -> Iterator[Path]:
        for path in sorted(self._folder.glob("[a-z0-9]*")) if self._folder.is_dir() else []:
            if re.fullmatch(NAME, path.name) and path.is_file() and path.name != BUILT_IN:
                yield path

    def _path(self, name: str) -> Path:
        if not re.fullmatch(NAME, name):
            raise BadRequest("name", name, NAME)
        return self._folder / name


class _Scan:
    """Decode a corpus as its bytes arrive, and compute its statistics."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._decoder = TextDecoder(f"corpus {name}")
        self._statistics = TextStatistics()
        self._start = ""  # of the text
        self._item_notes: list[str] = []
        self._is_declared = False
        self.layout = TEXT

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
            text = self._decoder.decode(chunk, final=final)
        except TextError as e:
            raise BadRequest("body", e.problem, e.expected, problem=f"{e.field}: {e.problem}") from e
        self._statistics.update(text)
        self._start += text[: SAMPLE_CHARS + 1 - len(self._start)]

    @property
    def sha256(self) -> str:
        """The hash of the decoded text, after the final update."""
        return self._statistics.sha256

    def read_items(self, path: Path, declared: ItemLayout | None) -> None:
        """Detect the layout of a list, and count its items. After the final update.

        The items of a large list are counted where it is trained on.

        Args:
            path: A file of the whole text.
            declared: What the upload said; None: it is detected from the text and the name.

        Raises:
            BadRequest: There are no such items.
        """
        self._is_declared = declared is not None
        self.layout = layout = detect(self._start, declared or ItemLayout(), self._name)
        if not layout.is_list or self._decoder.n_inflated > _MAX_COUNTED_BYTES:
            return
        try:
            text, _ = read_text(path)
            items = items_of(text, layout, f"corpus {self._name}")
            SplittableItems.of(items, f"corpus {self._name}")
        except TextError as e:
            if declared is None:
                self._item_notes = [f"it seems to be a list, but cannot be trained on as one: {e}"]
                return
            is_about = [
                name for name in ("column", "group_column") if e.value is not None and e.value == getattr(layout, name)
            ]
            field = is_about[0] if is_about and layout.items in TABLES else "body"
            raise BadRequest(field, e.value, e.expected, problem=f"{e.field}: {e.problem}") from e
        self._item_notes = items.notes

    def info(self, name: str, modified_at: float | None) -> CorpusInfo:
        """Return the statistics. Complete after the final update."""
        statistics = self._statistics
        return CorpusInfo(
            name,
            self.n_bytes,
            statistics.n_characters,
            statistics.characters,
            statistics.sha256,
            [*self._decoder.notes, *self._item_notes],
            modified_at,
            self.layout.as_dict(),
            self._is_declared,
        )


@lru_cache(maxsize=1)
def _built_in() -> CorpusInfo:
    text = _built_in_text()
    alphabet = "".join(sorted(set(text)))
    return CorpusInfo(BUILT_IN, len(text.encode()), len(text), alphabet, text_sha256(text), [], None)


def _built_in_text() -> str:
    """Return the built-in corpus, which may have to be downloaded.

    Raises:
        UnknownCorpus: It is not on this machine, and cannot be had.
    """
    try:
        return default_text()
    except TextError as e:
        raise UnknownCorpus(str(e)) from e


def _stored_info(path: Path, stat: os.stat_result) -> CorpusInfo | None:
    """Return the stored statistics, if there are some in today's layout and they belong to this file."""
    try:
        stored: dict[str, Any] = json.loads(_info_path(path).read_bytes())
        if stored.pop("file") != _identity(stat) or stored.pop("normalization") != NORMALIZATION:
            return None
        return CorpusInfo(**stored) if "layout" in stored else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _declared_layouts(path: Path) -> dict[str, ItemLayout]:
    """Return the layouts that uploads of a corpus have declared, by the hash of the text; none that cannot be read."""
    try:
        stored: dict[str, dict[str, Any]] = json.loads(_layout_path(path).read_bytes())
        return {sha256: ItemLayout.from_dict(layout) for sha256, layout in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        log.warning(
            "what is stored of the items of corpus %s cannot be read, so the layout is detected: %s", path.name, e
        )
        return {}


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_mtime_ns, stat.st_size]


def _info_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _layout_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.layout")


def _unknown(name: str) -> UnknownCorpus:
    return UnknownCorpus(f"corpus {name}: not found; GET /corpora lists all corpora")
