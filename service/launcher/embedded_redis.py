"""The embedded Redis: a real server of our own on a Unix socket, which ends with the launcher and keeps its data."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.launcher.supervisor import Child, ChildEnded, Supervisor
from service.settings import SettingsError
from service.store.redis_server import find_server_program, why_unusable

_START_S = 120.0  # it may have much to read
_STOP_S = 10.0  # it has to write the end of its log
_SOCKET = "redis.sock"
_MAX_SOCKET_PATH = 103  # bytes; the smallest limit of the systems that are supported, macOS's
_FAILED = "REDIS_URL='': the embedded Redis did not start"


@contextmanager
def embedded_redis(supervisor: Supervisor, folder: Path) -> Iterator[tuple[str, Child]]:
    """Run a Redis server that keeps its data in a folder.

    Args:
        supervisor: It starts and stops the process.
        folder: The folder for the data; it is created when it is missing.

    Yields:
        The URL of the server, and its process.

    Raises:
        SettingsError: The server does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sockets = _socket_folder()
    supervisor.remove_at_end(sockets)
    sockets.mkdir(mode=0o700)
    server = Child("redis", _command(folder.resolve(), sockets / _SOCKET))
    url = f"unix://{sockets / _SOCKET}"
    supervisor.start(server)
    try:
        try:
            is_up = supervisor.wait_until(lambda: why_unusable(url) is None, _START_S, server)
        except ChildEnded as error:
            raise SettingsError(f"{_FAILED} ({error}); {_advice(folder)}") from error
        if not is_up:
            raise SettingsError(f"{_FAILED} (no answer for {_START_S:g} s); {_advice(folder)}")
        yield url, server
    finally:
        supervisor.stop([server], _STOP_S)


def _socket_folder() -> Path:
    """Return a new folder's path in the temporary folder, or in /tmp where TMPDIR is too long for a socket in it."""
    name = f"longhand-{secrets.token_hex(8)}"
    candidates = [Path(parent) / name for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp")]  # noqa: S108
    fits = [path for path in candidates if len(os.fsencode(path / _SOCKET)) <= _MAX_SOCKET_PATH]
    return next((path for path in fits if os.access(path.parent, os.W_OK)), candidates[0])


def _command(folder: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",  # or a kill could lose what was answered as saved, up to two seconds of it
        "save": "",  # the log of commands is enough; a snapshot that cannot be written would prevent the shutdown
        "loglevel": "warning",
        "logfile": "redis.log",
        "maxmemory": "1gb",
        "maxmemory-policy": "volatile-lru",
        "maxmemory-samples": "10",
    }
    return [find_server_program(), *(part for name, value in options.items() for part in (f"--{name}", value))]


def _advice(folder: Path) -> str:
    return f"read {folder / 'redis.log'}, or set REDIS_URL to use another server"
