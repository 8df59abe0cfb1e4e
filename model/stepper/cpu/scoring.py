"""The native stepper's reading of many texts side by side: model/native/src/scoring.c."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray


class NativeScoring:
    """Implements `TextScoring`. It has memory of its own, which `close` frees; the stepper's slots are not touched."""

    def __init__(
        self,
        library: ctypes.CDLL,
        handle: int,
        lock: threading.Lock,
        check_open: Callable[[], object],
        arrays: tuple[NDArray[Any], ...],
    ) -> None:
        """Take over what lh_score_open returned.

        Args:
            library: Of the stepper.
            handle: Of the texts.
            lock: Of the stepper: one run at a time.
            check_open: Raises ValueError when the stepper is closed.
            arrays: Which the C code reads and writes; they stay while this object exists.
        """
        self._library = library
        self._handle: int | None = handle
        self._lock = lock
        self._check_open = check_open
        self._arrays = arrays

    def run(self, steps: int, n_cores: int = 0) -> int:
        """Read on for about so many steps; returns how many it were, 0 at the end.

        Args:
            steps: Of one text each.
            n_cores: The most that are used; 0: any number. They change no bit of a result.

        Raises:
            ValueError: It is closed, or its stepper is.
        """
        with self._lock:
            self._check_open()
            if self._handle is None:
                raise ValueError("the scoring is closed")
            made = int(self._library.lh_score_run(self._handle, min(steps, 1 << 24), n_cores))
        if made < 0:
            raise MemoryError("no memory for a part of the texts")
        return made

    def close(self) -> None:
        """Free the memory. Idempotent."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle:
                self._library.lh_score_close(handle)

    def __del__(self) -> None:
        """Free the memory when nobody refers to it any more."""
        if self._handle:
            self.close()
