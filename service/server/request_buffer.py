"""The bytes of one request as they arrive, until the request is whole.

This module knows no socket and no clock. It finds where a request ends; gunicorn's parser checks and reads it later.
"""

from __future__ import annotations

import re
from enum import Enum

MAX_HEAD_BYTES = 32 * 1024
"""Of the request line and all header fields together."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)
_ENCODING = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)


class Progress(Enum):
    """What is known of the request so far."""

    INCOMPLETE = "incomplete"  # more bytes are needed
    COMPLETE = "complete"  # head and body are here
    STREAMED = "streamed"  # the head is here; the body is too long to be kept, or of unknown length
    HEAD_TOO_LARGE = "head_too_large"


class RequestBuffer:
    """Collects a request; says when it is whole."""

    def __init__(self, max_body_bytes: int) -> None:
        """Start with nothing.

        Args:
            max_body_bytes: The longest body that is kept here; longer ones are streamed.
        """
        self._max_body_bytes = max_body_bytes
        self._data = bytearray()
        self._searched = 0
        self._needed: int | None = None  # bytes of head and body; None until the head is whole
        self.progress = Progress.INCOMPLETE

    def __len__(self) -> int:
        """Return the number of bytes kept."""
        return len(self._data)

    @property
    def has_head(self) -> bool:
        """Whether the head is whole."""
        return self._needed is not None

    @property
    def body_bytes(self) -> int:
        """Bytes that the body is announced to have, as far as it is kept here; 0 before the head is whole."""
        return 0 if self._needed is None else self._needed - self._searched

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for a "100 Continue" before it sends the body."""
        return self.has_head and _EXPECT.search(self._data, 0, self._searched) is not None

    @property
    def request_line(self) -> bytes:
        """The first line, without its end."""
        return bytes(self._data[: max(self._data.find(b"\r\n"), 0)])

    def feed(self, data: bytes) -> Progress:
        """Add what has arrived.

        Returns:
            The progress; after anything but INCOMPLETE nothing more is to be fed.
        """
        self._data += data
        if self._needed is None:
            self._find_head()
        if self.progress is Progress.INCOMPLETE and self._needed is not None and len(self._data) >= self._needed:
            self.progress = Progress.COMPLETE
        return self.progress

    def take(self) -> bytes:
        """Return everything that has arrived, what follows the request included."""
        data, self._data = bytes(self._data), bytearray()
        return data

    def _find_head(self) -> None:
        end = self._data.find(b"\r\n\r\n", max(self._searched - 3, 0))
        if end < 0:
            self._searched = len(self._data)
            if self._searched > MAX_HEAD_BYTES:
                self.progress = Progress.HEAD_TOO_LARGE
            return
        head = bytes(self._data[: end + 2])
        if len(head) > MAX_HEAD_BYTES:
            self.progress = Progress.HEAD_TOO_LARGE
            return
        self._searched = end + 4
        lengths = _LENGTH.findall(head)
        if _ENCODING.search(head):
            self._needed = self._searched
            self.progress = Progress.STREAMED
            return
        # Two lengths, or one that is no number, are refused by the parser, which reads no body then.
        body = int(lengths[0]) if len(lengths) == 1 else 0
        self._needed = self._searched + (body if body <= self._max_body_bytes else 0)
        if body > self._max_body_bytes:
            self.progress = Progress.STREAMED
