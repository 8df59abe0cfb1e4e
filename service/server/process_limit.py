"""The threads that the service needs, and the limit that its container has: too few end in errors under load only."""

from __future__ import annotations

import os
from pathlib import Path

from service.settings import Settings, SettingsError

LIMIT_FILE = Path("/sys/fs/cgroup/pids.max")
"""How many processes and threads this container may have: a number, or "max"."""
SPARE_THREADS = 16
"""Beside the requests that run or wait: they serve refusals, sessions and health checks."""


def request_threads(settings: Settings) -> int:
    """Return the threads of one worker process for requests: a stream holds one, and one that waits for a slot."""
    return settings.slots + settings.max_waiting + SPARE_THREADS


def needed_threads(settings: Settings, cores: int) -> int:
    """Return the most threads that all worker processes may have: torch and the native stepper have one per core."""
    own = 32  # threads for long bodies, closed responses and health checks, the engine, the watcher, and some more
    return 1 + settings.workers * (request_threads(settings) + own + 2 * cores)


def check_limit(settings: Settings, file: Path = LIMIT_FILE) -> None:
    """Check that the container allows so many threads.

    Raises:
        SettingsError: It does not.
    """
    try:
        limit = int(file.read_text())
    except (OSError, ValueError):  # no cgroup, or no limit
        return
    needed = needed_threads(settings, os.cpu_count() or 1)
    if limit < needed:
        raise SettingsError(
            f"SLOTS={settings.slots}, MAX_WAITING={settings.max_waiting}, WORKERS={settings.workers}: need up to "
            f"{needed} threads, and this container may have {limit}; set fewer, or raise that (compose: PIDS_LIMIT)"
        )
