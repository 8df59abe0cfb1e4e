"""States of prompts at fixed strides, so that a long prompt is read once for everybody.

A prompt's states are keyed by a digest of the model, its arithmetic and the ids up to there: what is found is bitwise
what reading would have made. A store may forget any of them at any time.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np
import redis
from numpy.typing import NDArray

STRIDE = 4096
"""Characters between stored states: an LSTM's state costs as much as the text of some thousand characters."""


def prefix_keys(fingerprint: str, numerics: str, ids: NDArray[np.int32]) -> list[tuple[int, str]]:
    """(length, key) of each prefix of a prompt at which a state is kept: every STRIDE, and its end; none of short ones.

    All keys of a prompt share the hash tag of its first stride, so a cluster keeps them together.
    """
    lengths = [*range(STRIDE, len(ids), STRIDE), len(ids)] if len(ids) >= STRIDE else []
    so_far = hashlib.blake2b(f"{fingerprint}/{numerics}/".encode(), digest_size=16)
    keys: list[tuple[int, str]] = []
    done, tag = 0, ""
    for length in lengths:
        so_far.update(ids[done:length].astype("<i4").tobytes())
        done, name = length, so_far.copy().hexdigest()
        tag = tag or name
        keys.append((length, f"lh:prefix:{{{tag}}}:{name}"))
    return keys


class PrefixStore(Protocol):
    """A cache: an answer of None is always allowed, and no error is ever raised."""

    def first(self, keys: list[str]) -> tuple[int, bytes] | None:
        """The first of these keys that is stored: its index and its state's bytes."""
        ...

    def put(self, key: str, state: bytes) -> None: ...


class MemoryPrefixes:
    """The last ones used, up to a number of bytes."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._states: OrderedDict[str, bytes] = OrderedDict()

    def first(self, keys: list[str]) -> tuple[int, bytes] | None:
        with self._lock:
            for i, key in enumerate(keys):
                if key in self._states:
                    self._states.move_to_end(key)
                    return i, self._states[key]
        return None

    def put(self, key: str, state: bytes) -> None:
        with self._lock:
            self._bytes += len(state) - len(self._states.get(key, b""))
            self._states[key] = state
            self._states.move_to_end(key)
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._states.popitem(last=False)[1])


_FIRST = """
for i, key in ipairs(KEYS) do
  local state = redis.call('GETEX', key, 'EX', ARGV[1])
  if state then return {i - 1, state} end
end
return {}
"""


class RedisPrefixes:
    """In Redis, for a time since their last use."""

    def __init__(self, client: Any, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._first = client.register_script(_FIRST)

    def first(self, keys: list[str]) -> tuple[int, bytes] | None:
        try:
            reply = self._first(keys=keys, args=[self._ttl_s])
        except redis.RedisError:
            return None
        return (int(reply[0]), bytes(reply[1])) if reply else None

    def put(self, key: str, state: bytes) -> None:
        try:
            self._client.set(key, state, ex=self._ttl_s)
        except redis.RedisError:
            return
