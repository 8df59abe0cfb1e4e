"""The automata of recent specifications of structured outputs, shared by all requests and models of a process."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable

from cachetools import LRUCache

from model.errors import StructuredOutputError, short_repr
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary

CACHE_BYTES = 64 << 20
_ENTRY_BYTES = 1024
"""What an entry takes besides its tables or its message."""


class CompilationCache:
    """The automata of recent specifications, by specification and vocabulary. Thread-safe.

    One specification is compiled at a time, so that compiling takes at most one core's time.
    """

    def __init__(self, on_lookup: Callable[[bool], None] | None = None, max_bytes: int = CACHE_BYTES) -> None:
        """Create an empty cache.

        Args:
            on_lookup: Called for each request with whether its specification was in the cache, for metrics.
            max_bytes: The most bytes that it keeps: tables, and messages of errors.
        """
        self._on_lookup = on_lookup
        self._results: LRUCache[bytes, Automaton | StructuredOutputError] = LRUCache(max_bytes, _n_bytes)
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def compile(self, spec: StructuredOutputs, vocab: Vocabulary) -> Automaton:
        """Return the automaton of a specification for a vocabulary.

        Raises:
            StructuredOutputError: As of StructuredOutputs.compile.
        """
        key = _key(spec, vocab)
        result = self._get(key)
        if self._on_lookup is not None:
            self._on_lookup(result is not None)
        if result is None:
            with self._compiling:
                result = self._get(key) or self._compile(key, spec, vocab)
        if isinstance(result, StructuredOutputError):  # a copy: a raised error keeps its traceback
            e = result
            raise StructuredOutputError(e.problem, field=e.field, value=e.value, expected=e.expected)
        return result

    def _get(self, key: bytes) -> Automaton | StructuredOutputError | None:
        with self._lock:
            return self._results.get(key)

    def _compile(self, key: bytes, spec: StructuredOutputs, vocab: Vocabulary) -> Automaton | StructuredOutputError:
        result: Automaton | StructuredOutputError
        try:
            result = spec.compile(vocab)
        except StructuredOutputError as e:
            result = StructuredOutputError(e.problem, field=e.field, value=_short(e.value), expected=e.expected)
        with self._lock:
            if _n_bytes(result) <= self._results.maxsize:
                self._results[key] = result
        return result


def _key(spec: StructuredOutputs, vocab: Vocabulary) -> bytes:
    """A digest, so that a key takes little memory whatever the specification is."""
    text = f"{json.dumps(spec.as_dict())}\n{vocab.characters}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _short(value: object) -> object:
    """The value of an error, or its beginning as a text if it is long."""
    return value if len(repr(value)) <= _ENTRY_BYTES // 4 else short_repr(value)


def _n_bytes(result: Automaton | StructuredOutputError) -> int:
    if isinstance(result, Automaton):
        return _ENTRY_BYTES + result.n_bytes
    return _ENTRY_BYTES + 4 * len(str(result))
