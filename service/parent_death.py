"""A signal for a process whose parent has ended, however the parent ended.

On Linux the kernel sends it (`PR_SET_PDEATHSIG`, prctl(2)). Other systems have no such call: there a thread watches the
parent's process id. This module imports the standard library only, because a process calls it before anything else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_POLL_S = 0.25


def signal_on_parent_death(number: signal.Signals, parent: int) -> None:
    """Have this process receive a signal when its parent ends, or now if the parent has ended already.

    The setting survives `exec`, but not `fork`: a child process has to call this again. On Linux it refers to the
    thread that created this process, so that a parent must create its children in a thread that lives as long as it.

    Args:
        number: The signal.
        parent: The process id of the parent, read by the parent itself or right after the fork.
    """
    if not request_kernel_signal(number):
        threading.Thread(target=_watch, args=(number, parent), name="parent-watch", daemon=True).start()
    elif os.getppid() != parent:  # it ended before the request
        os.kill(os.getpid(), number)


def request_kernel_signal(number: signal.Signals) -> bool:
    """Ask the kernel for the signal at the death of the parent.

    Returns:
        False when this system has no such call.
    """
    if not sys.platform.startswith("linux"):
        return False
    failed: int = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    return failed == 0


def _watch(number: signal.Signals, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), number)
