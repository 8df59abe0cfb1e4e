"""Stop strings in a text that arrives in chunks.

A text stops at the first character that completes any stop string, and ends before the longest one that is complete
there. A match must begin after the first `min_chars` characters of the text. What may still become a stop string is
held back. How the text is cut into chunks changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Takes the generated text chunk by chunk and returns how much of it may be sent."""

    def __init__(self, stops: Sequence[str], skip_chars: int = 0) -> None:
        """Search for these strings, none of which is empty, in everything after the first `skip_chars` characters."""
        self._stops = tuple(stops)
        self._skip_chars = skip_chars
        self._longest = max((len(s) for s in stops), default=0)
        self._held = ""

    @property
    def is_active(self) -> bool:
        """Whether there is any stop string."""
        return bool(self._stops)

    @property
    def held_chars(self) -> int:
        """The number of characters that are held back."""
        return len(self._held)

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next chunk.

        Returns:
            The text that may be sent now, and whether a stop string ended the text. After that, nothing may be fed.
        """
        if not self._stops:
            return text, False
        skipped, text = text[: self._skip_chars], text[self._skip_chars :]
        self._skip_chars -= len(skipped)
        sendable, is_stopped = self._search(text)
        return skipped + sendable, is_stopped

    def flush(self) -> str:
        """Return what was held back, for a text that ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _search(self, text: str) -> tuple[str, bool]:
        unsent = self._held + text
        end = min((at + len(s) for s in self._stops if (at := unsent.find(s)) >= 0), default=None)
        if end is not None:
            longest = max((s for s in self._stops if unsent.endswith(s, 0, end)), key=len)
            return unsent[: end - len(longest)], True
        n = self._held_chars(unsent)
        self._held = unsent[len(unsent) - n :]
        return unsent[: len(unsent) - n], False

    def _held_chars(self, text: str) -> int:
        """The length of the longest suffix of the text with which a stop string begins."""
        for n in range(min(len(text), self._longest - 1), 0, -1):
            if any(s.startswith(text[-n:]) for s in self._stops):
                return n
        return 0
