"""Stop strings over text that arrives in pieces.

A text stops at the first character with which any stop string is complete, and ends before the longest one that is
complete there. What may still become a stop string is held back. How the text was cut into pieces changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Feed it a turn's text; it says how much may be shown."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max((len(s) for s in stops), default=0)
        self._held = ""

    @property
    def any(self) -> bool:
        """Whether there is any stop string at all."""
        return bool(self._stops)

    @property
    def held(self) -> int:
        """Characters that have been fed and may not be shown yet."""
        return len(self._held)

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was met; after one, feed no more."""
        if not self._stops:
            return text, False
        seen = self._held + text
        end = min((at + len(s) for s in self._stops if (at := seen.find(s)) >= 0), default=None)
        if end is not None:
            met = max((s for s in self._stops if seen.endswith(s, 0, end)), key=len)
            return seen[: end - len(met)], True
        keep = self._partial(seen)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep], False

    def flush(self) -> str:
        """What was held back, for a text that ends without a stop."""
        held, self._held = self._held, ""
        return held

    def _partial(self, seen: str) -> int:
        """The length of the longest end of `seen` that begins a stop string."""
        for n in range(min(len(seen), self._longest - 1), 0, -1):
            if any(s.startswith(seen[-n:]) for s in self._stops):
                return n
        return 0
