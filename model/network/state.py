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
            StateError: They are not a complete state, or one of another layout.
        """
        try:
            (length,) = struct.unpack_from("<H", data)
            header = json.loads(data[2 : 2 + length])
            if header["layout"] != _LAYOUT:
                layout = header["layout"]
                raise StateError(f"layout {layout!r}", field="state", value=layout, expected=str(_LAYOUT))
            dtype, shape = _DTYPES[header["dtype"]], tuple(int(n) for n in header["shape"])
            floats = data[2 + length :]
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(floats):
                expected = f"shape {shape} of {dtype.name}"
                raise StateError(f"{len(floats)} bytes of floats", field="state", expected=expected)
            values = np.frombuffer(floats, dtype=dtype).reshape(shape)
            return cls(
                values, int(header["pending"]), int(header["position"]), header["fingerprint"], header["numerics"]
            )
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"{len(data)} bytes that are not a stored state ({error})", field="state") from error
