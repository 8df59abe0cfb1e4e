"""The keys of clients: those of API_KEYS, and those of a file that may bind each to models and to a rate of its own.

The file holds no key, only digests. Keys are drawn at random and have at least 16 characters, so a plain SHA-256 is
enough: nobody can try them all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.checkpoints.names import NAME_EXPECTED, is_model_name
from service.settings import RATE, SettingsError

_MAX_FILE_BYTES = 1 << 24
_log = logging.getLogger(__name__)
_FileVersion = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a client's key."""

    name: str  # for people; empty for those of API_KEYS
    models: frozenset[str] | None = None  # that it may use; None: all
    rate: str = ""  # generation requests allowed, such as 60/minute; empty: RATE_LIMIT


def _check_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError(f"expected {NAME_EXPECTED}")
    return name


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    models: list[Annotated[str, AfterValidator(_check_name)]] | None = Field(None, min_length=1)
    rate: str = Field("", pattern=f"^({RATE})?$")


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[_Entry]


class ApiKeys:
    """Finds keys. Thread-safe. The file is read again when it has changed; one that cannot be used changes nothing."""

    def __init__(self, keys: Iterable[str] = (), path: Path | None = None) -> None:
        """Read the file.

        Args:
            keys: Keys that open every model.
            path: `{"keys": [{"name": ..., "sha256": ..., "models": [...], "rate": ...}]}`, of which models and rate may
                be left out.

        Raises:
            SettingsError: The file cannot be used.
        """
        self._fixed = {_digest(key.encode()): ApiKey("") for key in keys}
        self._path = path
        self._lock = threading.Lock()
        self._from_file: dict[str, ApiKey] = {}
        self._seen: _FileVersion | None = None
        if path is not None:
            self._from_file, self._seen = _read(path)

    @property
    def are_required(self) -> bool:
        """Whether generation needs a key: also where the file names none yet."""
        return bool(self._fixed) or self._path is not None

    def find(self, key: bytes) -> ApiKey | None:
        """Return what is known of a key; None if it is not valid."""
        self._read_again()
        digest = _digest(key)  # of a digest, the time of a lookup tells nothing that helps to guess a key
        return self._fixed.get(digest) or self._from_file.get(digest)

    def _read_again(self) -> None:
        if self._path is None or _version(self._path) == self._seen:
            return
        with self._lock:
            version = _version(self._path)
            if version == self._seen:
                return
            try:
                self._from_file, self._seen = _read(self._path)
            except SettingsError as error:
                self._seen = version
                _log.error("%s; the keys that were read before stay valid", error)
            else:
                _log.info("API_KEYS_FILE was read again; it has %d keys", len(self._from_file))


def _read(path: Path) -> tuple[dict[str, ApiKey], _FileVersion]:
    """Read the keys by digest, and the version of the file that they are from.

    Raises:
        SettingsError: They cannot be used. It names the entry and its field, and shows no digest.
    """
    try:
        with path.open("rb") as file:
            version = _version_of(os.fstat(file.fileno()))
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"has more than {_MAX_FILE_BYTES:,} bytes")
        entries = _File.model_validate(json.loads(content)).keys
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        reason = "expected a JSON object" if problem["type"] == "model_type" else problem["msg"]
        raise SettingsError(f"API_KEYS_FILE={str(path)!r}: {place}: {reason}") from None
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise SettingsError(f"API_KEYS_FILE={str(path)!r}: {cause}") from None
    for field in ("name", "sha256"):
        seen = set()
        for index, entry in enumerate(entries):
            if (value := getattr(entry, field)) in seen:
                raise SettingsError(f"API_KEYS_FILE={str(path)!r}: keys.{index}.{field}: is in the file twice")
            seen.add(value)
    return {
        e.sha256: ApiKey(e.name, None if e.models is None else frozenset(e.models), e.rate) for e in entries
    }, version


def _version(path: Path) -> _FileVersion | None:
    try:
        return _version_of(path.stat())
    except OSError:
        return None


def _version_of(stat: os.stat_result) -> _FileVersion:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()
