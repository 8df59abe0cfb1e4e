"""The automata of recent specifications of structured outputs, shared by all requests and models of a process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from cachetools import LRUCache

from model.errors import StructuredOutputError
from model.structured_outputs.automaton import Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary

CACHE_BYTES = 64 << 20
_ERROR_BYTES = 1024


class CompilationCache:
    """The automata of recent specifications, by specification and vocabulary. Thread-safe.

    One specification is compiled at a time, so that compiling takes at most one core's time.
    """

    def __init__(self, on_lookup: Callable[[bool], None] | None = None, max_bytes: int = CACHE_BYTES) -> None:
        """Create an empty cache.

        Args:
            on_lookup: Called for each request with whether its specification was in the cache, for metrics.
            max_bytes: The most bytes of tables that it keeps.
        """
        self._on_lookup = on_lookup
        self._results: LRUCache[tuple[str, str], Automaton | StructuredOutputError] = LRUCache(max_bytes, _n_bytes)
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def compile(self, spec: StructuredOutputs, vocab: Vocabulary) -> Automaton:
        """Return the automaton of a specification for a vocabulary.

        Raises:
            StructuredOutputError: As of StructuredOutputs.compile.
        """
        key = (json.dumps(spec.as_dict()), vocab.characters)
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

    def _get(self, key: tuple[str, str]) -> Automaton | StructuredOutputError | None:
        with self._lock:
            return self._results.get(key)

    def _compile(
        self, key: tuple[str, str], spec: StructuredOutputs, vocab: Vocabulary
    ) -> Automaton | StructuredOutputError:
        result: Automaton | StructuredOutputError
        try:
            result = spec.compile(vocab)
        except StructuredOutputError as e:
            result = StructuredOutputError(e.problem, field=e.field, value=e.value, expected=e.expected)
        with self._lock:
            if _n_bytes(result) <= self._results.maxsize:
                self._results[key] = result
        return result


def _n_bytes(result: Automaton | StructuredOutputError) -> int:
    return result.n_bytes if isinstance(result, Automaton) else _ERROR_BYTES
