"""A hidden state <-> bytes, and the state invariant.

THE STATE INVARIANT: a hidden state has consumed every id of its text except `next_input`. `next_input` is fed first when the
text goes on. `position` counts the text's characters, `next_input` included; a text that has not begun is at position 0
with the zero state, and its next_input id is the vocabulary's `start`, which counts in no position.

The bytes are a length, a JSON header and raw little-endian floats: nothing in them can run, and a float comes back
with the bits it had.
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
    """All that a text's past means to the network."""

    values: NDArray[np.floating]  # (S, L, H)
    next_input: int
    position: int
    fingerprint: str  # of the checkpoint that made it
    numerics: str  # of the stepper that made it

    def fits(self, fingerprint: str, numerics: str) -> bool:
        """Whether the weights and the arithmetic that made it are those asked for: a state meets no others."""
        return self.fingerprint == fingerprint and self.numerics == numerics

    def to_bytes(self) -> bytes:
        code = "f8" if self.values.dtype == np.float64 else "f4"
        header = json.dumps(
            {
                "layout": _LAYOUT,
                "dtype": code,
                "shape": self.values.shape,
                "pending": self.next_input,
                "position": self.position,
                "fingerprint": self.fingerprint,
                "numerics": self.numerics,
            },
            separators=(",", ":"),
        ).encode()
        return struct.pack("<H", len(header)) + header + self.values.astype(_DTYPES[code], copy=False).tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> HiddenState:
        """Raised: StateError when the bytes are not a whole state."""
        try:
            (length,) = struct.unpack_from("<H", data)
            header = json.loads(data[2 : 2 + length])
            if header["layout"] != _LAYOUT:
                raise StateError(f"state: layout {header['layout']!r}, expected {_LAYOUT}")
            dtype, shape = _DTYPES[header["dtype"]], tuple(int(n) for n in header["shape"])
            body = data[2 + length :]
            if len(shape) != 3 or min(shape) < 1 or math.prod(shape) * dtype.itemsize != len(body):
                raise StateError(f"state: {len(body)} bytes of floats, expected shape {shape} of {dtype.name}")
            values = np.frombuffer(body, dtype=dtype).reshape(shape)
            return cls(
                values, int(header["pending"]), int(header["position"]), header["fingerprint"], header["numerics"]
            )
        except (struct.error, ValueError, KeyError, TypeError) as e:
            raise StateError(f"state: {len(data)} bytes that are not a stored state ({e})") from e
