"""Free memory goes back to the system: after a burst of requests a worker is as small as before.

glibc keeps what was freed, in an arena of each thread that was busy at the same time as others, for the next burst.
"""

from __future__ import annotations

import ctypes

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's function; other libraries (musl, macOS) have none and give free pages back by themselves."""


def return_free_memory() -> None:
    """Give whole pages that hold nothing back to the system; takes milliseconds, without Python's lock."""
    if _TRIM is not None:
        _TRIM(0)
