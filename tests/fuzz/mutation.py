"""Damage to stored bytes: of any byte, and of the values of the JSON that is in them."""

from __future__ import annotations

import json
import os
import random
import re
import struct
from collections.abc import Callable
from typing import Any

QUICK = 250
N = int(os.environ.get("FUZZ", QUICK))
"""Damaged records of each kind; `make fuzz` has 10,000."""
_VALUES = [
    *(b"-1", b"0", b"1", b"2", b"1e999", b"1.5", b"NaN", b"-Infinity", b"null", b"[]", b"{}", b"true", b"false"),
    *(b'""', b'"x"', b'"\\ud800"', b'"\\u0000"', b'"../../x"', b'"/etc/passwd"', b"9007199254740993", b"4294967296"),
    *(b"99999999999999999999999999999999", b"[[[[[[[[[[]]]]]]]]]]", b'{"a":{"b":[null]}}', b"[1,2,3]", b"[-1,1,1]"),
]
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null|"[^"\\]{0,200}"|\[[^\[\]{}]{0,200}\]')


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with one to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice((_json_value, _json_value, _json_value, _bits, _cut, _insert, _double, _truncate))(data, rng)
    return data


def mutated_state(data: bytes, rng: random.Random) -> bytes:
    """Return a stored hidden state with a damaged header of a right length, or wrong numbers of a right size."""
    (length,) = struct.unpack_from("<H", data)
    header, floats = data[2 : 2 + length], data[2 + length :]
    what = rng.randrange(4)
    if what == 0:
        fields: dict[str, Any] = json.loads(header)
        shape = fields["shape"]
        rng.shuffle(shape)
        fields["shape"] = rng.choice(
            [shape, [shape[0] * shape[1], 1, shape[2]], [1, 1, shape[0] * shape[1] * shape[2]]]
        )
        header = json.dumps(fields, separators=(",", ":")).encode()
    elif what == 1:
        at = 4 * rng.randrange(len(floats) // 4)
        wrong = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))
        floats = floats[:at] + struct.pack("<f", wrong) + floats[at + 4 :]
    else:
        header = _json_value(header, rng)[:65535]
    return struct.pack("<H", len(header)) + header + floats


def _json_value(data: bytes, rng: random.Random) -> bytes:
    tokens = list(_TOKEN.finditer(data))
    if not tokens:
        return _bits(data, rng)
    token = rng.choice(tokens)
    return data[: token.start()] + rng.choice(_VALUES) + data[token.end() :]


def _bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 9) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]


def _double(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start : start + rng.randrange(1, 65)] + data[start:]


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def failures(damage: Callable[[random.Random], Callable[[], None]], n: int = N) -> list[str]:
    """Use `n` damaged records, and return what went wrong, with the seed that does it again.

    Args:
        damage: Makes a damaged record with this source of chance, and returns what uses it: it raises on a failure.
        n: How many.
    """
    result = []
    for seed in range(n):
        use = damage(random.Random(seed))
        try:
            use()
        except Exception as e:
            result.append(f"seed {seed}: {type(e).__name__}: {e}")
    return result
