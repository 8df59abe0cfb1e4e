"""The one decoder of text: files on the command line, uploads and training jobs are all decoded by it.

It accepts UTF-8, also compressed by gzip, drops a byte order mark, turns CR LF and CR into LF, and composes to Unicode
NFC (see model.text.normalization, which does the same to prompts). The work is done by the standard library's
incremental decoders; this class adds the position of an error and notes on what was changed.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from model.errors import TextError
from model.text.normalization import NORMALIZATION, IncrementalComposer, Normalization

_FOREIGN_BOMS = (  # UTF-32 before UTF-16: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_BOM_BYTES = 4
_GZIP = b"\x1f\x8b"
_GZIP_WBITS = 31  # zlib's name for the gzip format
_INFLATED_BYTES = 1 << 22  # at once
_CHUNK_BYTES = 1 << 20


class TextDecoder:
    """Decode one text, given in chunks that may be cut anywhere."""

    def __init__(
        self, name: str, normalization: Normalization = NORMALIZATION, max_inflated: int | None = None
    ) -> None:
        """Begin a text.

        Args:
            name: What it is, in the messages of errors.
            normalization: Without "nfc" the characters are not composed. Line ends are always changed.
            max_inflated: The most bytes that a compressed text may have; None: any number.
        """
        self.name = name
        self._max_inflated = max_inflated
        self._head: bytes | None = b""  # the first bytes, until there are enough to see whether they are compressed
        self._inflater: zlib._Decompress | None = None
        self.n_bytes = 0  # received
        self.n_inflated = 0  # bytes of the text, before they are decoded: more than n_bytes where it is compressed
        self.n_characters = 0  # returned
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._start: bytes | None = b""  # the first bytes, until there are enough to see a byte order mark
        self._had_bom = False
        self._composer = IncrementalComposer() if normalization == "nfc" else None
        self._decoded = 0  # bytes handed to the UTF-8 decoder, plus the byte order mark
        self._n_cr = self._n_lf = self._n_lines = 0  # received CR, received LF, returned LF

    def decode(self, chunk: bytes, *, final: bool = False) -> str:
        """Decode the next chunk as a whole; `pieces` takes less memory where a text is compressed.

        Args:
            chunk: The bytes that follow those of the last call.
            final: Whether the text ends here.

        Returns:
            Characters of the text. Some may be returned only by a later call, when a chunk ends within a character or
            between a CR and its LF, or where a combining character may follow.

        Raises:
            TextError: The bytes are not UTF-8, or the text is empty.
        """
        return "".join(self.pieces(chunk, final=final))

    def pieces(self, chunk: bytes, *, final: bool = False) -> Iterator[str]:
        """Decode the next chunk, and yield its characters: those of a compressed one a few megabytes at a time.

        Arguments and errors are those of `decode`.
        """
        self.n_bytes += len(chunk)
        if self._head is not None:
            self._head += chunk
            if len(self._head) < len(_GZIP) and not final:
                return
            chunk, self._head = self._head, None
            if chunk.startswith(_GZIP):
                self._inflater = zlib.decompressobj(_GZIP_WBITS)
        if self._inflater is None:
            self.n_inflated += len(chunk)
            yield self._decode(chunk, final=final)
            return
        yield from map(self._decode, self._inflate(chunk, final=final))
        if final:
            yield self._decode(b"", final=True)

    def _inflate(self, chunk: bytes, *, final: bool) -> Iterator[bytes]:
        """Yield the bytes of compressed ones, a few at a time; the file may have several members.

        Raises:
            TextError: They are damaged, end too early or are too many.
        """
        assert self._inflater is not None
        try:
            while chunk:
                if self._inflater.eof:
                    self._inflater = zlib.decompressobj(_GZIP_WBITS)
                piece = self._inflater.decompress(chunk, _INFLATED_BYTES)
                self.n_inflated += len(piece)
                if self._max_inflated is not None and self.n_inflated > self._max_inflated:
                    expected = f"at most {self._max_inflated:,} bytes when it is decompressed"
                    raise TextError("decompresses to more", field=self.name, expected=expected)
                yield piece
                chunk = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
        except zlib.error as error:
            problem = f"its gzip compression is damaged ({error})"
            raise TextError(problem, field=self.name, expected="a complete .gz file") from error
        if final and not self._inflater.eof:
            raise TextError("its gzip compression ends too early", field=self.name, expected="a complete .gz file")

    def _decode(self, chunk: bytes, *, final: bool = False) -> str:
        """Decode the next bytes of the text itself."""
        if self._start is not None:
            self._start += chunk
            if len(self._start) < _BOM_BYTES and not final:
                return ""
            chunk, self._start = self._without_bom(self._start), None
        undecoded = len(self._utf8.getstate()[0])  # bytes of an incomplete character, from the last call
        try:
            raw = self._utf8.decode(chunk, final)
        except UnicodeDecodeError as error:
            raise self._not_utf8(error, self._decoded - undecoded) from error
        self._decoded += len(chunk)
        text = self._newlines.decode(raw, final)
        self._n_cr += raw.count("\r")
        self._n_lf += raw.count("\n")
        self._n_lines += text.count("\n")
        if self._composer is not None:
            text = self._composer.compose(text, final=final)
        self.n_characters += len(text)
        if final and not self.n_characters:
            raise TextError("is empty", field=self.name, expected="text")
        return text

    @property
    def notes(self) -> list[str]:
        """What was changed while the text was decoded, as sentences. Complete after the final call."""
        notes = [f"decompressed from {self.n_bytes:,} to {self.n_inflated:,} bytes"] if self._inflater else []
        notes += ["a byte order mark at the start was dropped"] if self._had_bom else []
        if self._n_cr:
            n_crlf = self._n_cr + self._n_lf - self._n_lines  # each CR LF became one LF
            notes.append(f"line ends became \\n ({n_crlf} CR LF, {self._n_cr - n_crlf} CR)")
        if self._composer is not None and self._composer.has_changed:
            n_before, n_after = self._composer.n_received, self.n_characters
            notes.append(f"characters were composed to Unicode NFC ({n_before:,} became {n_after:,})")
        return notes

    def _without_bom(self, start: bytes) -> bytes:
        for bom, encoding in _FOREIGN_BOMS:
            if start.startswith(bom):
                problem = f"is {encoding} (byte order mark at byte 0)"
                raise TextError(problem, field=self.name, value=encoding, expected="UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            self._had_bom = True
            self._decoded = len(codecs.BOM_UTF8)
        return start[self._decoded :]

    def _not_utf8(self, error: UnicodeDecodeError, offset: int) -> TextError:
        """Return the error that names the first bad byte and its line; `offset` is the byte where `error` starts."""
        valid = error.object[: error.start].decode("utf-8")
        seen = io.IncrementalNewlineDecoder(None, translate=True)
        seen.setstate(self._newlines.getstate())
        line = 1 + self._n_lines + seen.decode(valid, True).count("\n")
        byte = error.object[error.start]
        problem = f"not UTF-8, byte {offset + error.start} is 0x{byte:02x} ({error.reason}) in line {line}"
        return TextError(problem, field=self.name, value=f"0x{byte:02x}", expected="UTF-8 text")


def decode_file(path: Path, decoder: TextDecoder, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[str]:
    """Decode a file in chunks, in order.

    Args:
        path: The file.
        decoder: A new decoder. After each chunk its `n_bytes` is the number of bytes that have been read.
        chunk_bytes: The number of bytes to read at a time.

    Raises:
        TextError: The file cannot be read, is not UTF-8 or is empty.
    """
    try:
        with open(path, "rb") as file:
            while chunk := file.read(chunk_bytes):
                yield from decoder.pieces(chunk)
            yield from decoder.pieces(b"", final=True)
    except OSError as error:
        raise TextError(f"cannot be read ({error.strerror})", field=decoder.name, expected="a text file") from error


def text_bytes(path: Path, enough: int) -> int:
    """Return the bytes of a text file; of a compressed one those of its text, counted until there are `enough`.

    A file that cannot be read or is damaged counts as far as it can be read.
    """
    n_bytes = 0
    try:
        with open(path, "rb") as file:
            if file.read(len(_GZIP)) != _GZIP:
                return os.stat(path).st_size
        with gzip.open(path) as inflated:
            while n_bytes < enough and (piece := inflated.read(_CHUNK_BYTES)):
                n_bytes += len(piece)
    except (OSError, EOFError, zlib.error):
        pass
    return n_bytes


def read_text(path: Path, normalization: Normalization = NORMALIZATION) -> tuple[str, list[str]]:
    """Read a text file as a whole.

    Args:
        path: The file.
        normalization: That of the checkpoint which is to read the text.

    Returns:
        The text, and notes on what was changed while it was decoded.

    Raises:
        TextError: The file cannot be read, is not UTF-8 or is empty.
    """
    decoder = TextDecoder(f"corpus {path}", normalization)
    return "".join(decode_file(path, decoder)), decoder.notes
