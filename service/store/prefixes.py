"""A cache of the hidden states of long prompts, so that a prompt that many requests share is read once.

The key of a state is a digest of the model, its arithmetic and the ids up to there. So a cached state is bitwise what
reading the prompt would compute. A store may forget any state at any time.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Protocol

import numpy as np
import redis
from cachetools import LRUCache
from numpy.typing import NDArray

STRIDE = 4096
"""Characters between cached states: an LSTM's state is as large as the text of some thousand characters."""


def prefix_keys(fingerprint: str, numerics: str, ids: NDArray[np.int32]) -> list[tuple[int, str]]:
    """Return (length, key) of each prefix of a prompt whose state is cached: every STRIDE, and the whole prompt.

    Prompts shorter than STRIDE have none. All keys of a prompt share the hash tag of its first stride, so that a
    cluster keeps them on one node.

    Args:
        fingerprint: The identity of the model.
        numerics: The arithmetic of its stepper.
        ids: The prompt, (n,).
    """
    lengths = [*range(STRIDE, len(ids), STRIDE), len(ids)] if len(ids) >= STRIDE else []
    digest = hashlib.blake2b(f"{fingerprint}/{numerics}/".encode(), digest_size=16)
    keys: list[tuple[int, str]] = []
    digested, tag = 0, ""
    for length in lengths:
        digest.update(ids[digested:length].astype("<i4").tobytes())
        digested, name = length, digest.copy().hexdigest()
        tag = tag or name
        keys.append((length, f"lh:prefix:{{{tag}}}:{name}"))
    return keys


class PrefixStore(Protocol):
    """A cache of states as bytes. It raises no error: a store that does not answer has no state."""

    def get_first(self, keys: list[str]) -> tuple[int, bytes] | None:
        """Return the index and the state of the first of these keys that is cached."""
        ...

    def put(self, key: str, state: bytes) -> None:
        """Cache a state."""
        ...


class MemoryPrefixes:
    """Implements `PrefixStore`: the least recently used states are forgotten beyond a number of bytes."""

    def __init__(self, max_bytes: int = 64 << 20) -> None:
        """Create an empty cache."""
        self._lock = threading.Lock()
        self._states: LRUCache[str, bytes] = LRUCache(max_bytes, getsizeof=len)

    def get_first(self, keys: list[str]) -> tuple[int, bytes] | None:
        """Implement PrefixStore.get_first."""
        with self._lock:
            for i, key in enumerate(keys):
                state = self._states.get(key)
                if state is not None:
                    return i, state
        return None

    def put(self, key: str, state: bytes) -> None:
        """Implement PrefixStore.put; a state that is larger than the whole cache is not kept."""
        with self._lock:
            if len(state) <= self._states.maxsize:
                self._states[key] = state


_GET_FIRST = """
for i, key in ipairs(KEYS) do
  local state = redis.call('GETEX', key, 'EX', ARGV[1])
  if state then return {i - 1, state} end
end
return {}
"""


class RedisPrefixes:
    """Implements `PrefixStore` in Redis: a state expires after a time without use."""

    def __init__(self, client: Any, ttl_s: int) -> None:
        """Use a client; nothing is sent yet."""
        self._client = client
        self._ttl_s = ttl_s
        self._get_first = client.register_script(_GET_FIRST)

    def get_first(self, keys: list[str]) -> tuple[int, bytes] | None:
        """Implement PrefixStore.get_first."""
        try:
            reply = self._get_first(keys=keys, args=[self._ttl_s])
        except redis.RedisError:
            return None
        return (int(reply[0]), bytes(reply[1])) if reply else None

    def put(self, key: str, state: bytes) -> None:
        """Implement PrefixStore.put."""
        try:
            self._client.set(key, state, ex=self._ttl_s)
        except redis.RedisError:
            return
