"""The hidden state of a text, its bytes, and the state invariant.

THE STATE INVARIANT: a hidden state has consumed every id of its text except `next_input`, which is fed first when the
text continues. `position` counts the characters of the text, `next_input` included. A text that has not begun is at
position 0 with the zero state; its `next_input` is the vocabulary's `start`, which counts in no position.

The bytes are a length, a JSON header and raw little-endian floats: reading them runs no code, and every float comes
back with the same bits.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import StateError

_LAYOUT = 1
MAX_POSITION = 2**53 - 1
"""The largest position of a text: a number that every reader of JSON has exactly."""
_MAX_ID = 2**31 - 1
_DTYPES: dict[str, np.dtype[np.floating]] = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8")}


@dataclass(frozen=True, slots=True, eq=False)
class HiddenState:
    """Everything that the network keeps of a text."""

    values: NDArray[np.floating]  # (S, L, H)
    next_input: int
    position: int
    fingerprint: str  # of the checkpoint that computed it
    numerics: str  # of the stepper that computed it

    def fits(self, fingerprint: str, numerics: str) -> bool:
        """Whether these weights and this arithmetic computed the state; no others may continue it."""
        return self.fingerprint == fingerprint and self.numerics == numerics

    def to_bytes(self) -> bytes:
        """Return the state as bytes."""
        code = "f8" if self.values.dtype == np.float64 else "f4"
        header = json.dumps(
            {
                "layout": _LAYOUT,
                "dtype": code,
                "shape": self.values.shape,
                "pending": self.next_input,  # its earlier name; stored states have it
                "position": self.position,
                "fingerprint": self.fingerprint,
                "numerics": self.numerics,
            },
            separators=(",", ":"),
        ).encode()
        return struct.pack("<H", len(header)) + header + self.values.astype(_DTYPES[code], copy=False).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> HiddenState:
        """Read the bytes that `to_bytes` returned.

        Raises:
            StateError: They are not a complete state, or one of another layout, or a value is out of range. Whether
                the state fits a model, only that model can say.
        """
        try:
            (length,) = struct.unpack_from("<H", data)
            header = json.loads(data[2 : 2 + length])
            if header["layout"] != _LAYOUT:
                layout = header["layout"]
                raise StateError(f"layout {layout!r}", field="state", value=layout, expected=str(_LAYOUT))
            dtype, floats = _DTYPES[header["dtype"]], data[2 + length :]
            shape = tuple(checked_integer("shape", n, len(floats)) for n in header["shape"])
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(floats):
                expected = f"shape {shape} of {dtype.name}"
                raise StateError(f"{len(floats)} bytes of floats", field="state", expected=expected)
            values = np.frombuffer(floats, dtype=dtype).reshape(shape)
            if not np.isfinite(values).all():
                raise StateError("some of its numbers are not finite", field="state", expected="finite numbers")
            return cls(
                values,
                checked_integer("pending", header["pending"], _MAX_ID),
                checked_integer("position", header["position"], MAX_POSITION),
                checked_string("fingerprint", header["fingerprint"]),
                checked_string("numerics", header["numerics"]),
            )
        except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise StateError(f"{len(data)} bytes that are not a stored state ({error})", field="state") from error


def checked_integer(name: str, value: object, most: int) -> int:
    """Return a stored value if it is an integer from 0 to `most`.

    Raises:
        StateError: It is not.
    """
    if type(value) is not int or not 0 <= value <= most:
        raise StateError(field=name, value=value, expected=f"an integer from 0 to {most}")
    return value


def checked_string(name: str, value: object) -> str:
    """Return a stored value if it is a string that can be sent: without half of a pair of surrogates.

    Raises:
        StateError: It is not.
    """
    try:
        if not isinstance(value, str):
            raise StateError(field=name, value=value, expected="a string")
        value.encode()
    except UnicodeEncodeError as error:
        raise StateError(field=name, value=value, expected="text without lone surrogates") from error
    return value
