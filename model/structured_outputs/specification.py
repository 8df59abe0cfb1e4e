"""What a text must be: a regular expression, one of several texts, or JSON of a schema. And the compiled ones, cached.

Example:
    automaton, was_cached = CompilationCache().compile(StructuredOutputs("choice", ["yes", "no"]), vocab)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cachetools import LRUCache

from model.errors import StructuredOutputError
from model.structured_outputs.automaton import Automaton, compile_tree
from model.structured_outputs.json_schema import any_object, tree_of
from model.structured_outputs.syntax import Node, choice, parse
from model.text.vocab import Vocabulary

Kind = Literal["regex", "choice", "json", "json_object"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_CHOICES = 1000
CACHE_BYTES = 64 << 20
_ERROR_BYTES = 1024


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """A specification. What it accepts is what `re.fullmatch`, equality or a JSON-schema validator accepts."""

    kind: Kind
    value: Any  # a pattern, a list of texts, a JSON schema; true for json_object

    def as_dict(self) -> dict[str, Any]:
        """Return the specification as JSON: its value by its kind."""
        return {self.kind: self.value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StructuredOutputs:
        """The inverse of `as_dict`.

        Raises:
            StructuredOutputError: It does not have exactly one kind.
        """
        if len(values) == 1:
            for kind in KINDS:
                if kind in values:
                    return cls(kind, values[kind])
        expected = f"exactly one of {', '.join(KINDS)}"
        raise StructuredOutputError(
            f"got {', '.join(map(str, values)) or 'none'}", value=dict(values), expected=expected
        )

    def tree(self) -> Node:
        """The tree of the texts that it accepts.

        Raises:
            StructuredOutputError: The value cannot be used.
        """
        match self.kind, self.value:
            case "regex", str(pattern):
                return parse(pattern)
            case "choice", list(texts) if 1 <= len(texts) <= MAX_CHOICES and all(isinstance(t, str) for t in texts):
                return choice(texts)
            case "json", schema:
                return tree_of(schema)
            case "json_object", True:
                return any_object()
        expected = {"regex": "a string", "choice": f"a list of 1 to {MAX_CHOICES} strings", "json_object": "true"}
        raise StructuredOutputError(field=self.kind, value=self.value, expected=expected[self.kind])

    def compile(self, vocab: Vocabulary) -> Automaton:
        """Compile it for a vocabulary.

        Raises:
            StructuredOutputError: The value cannot be used, is too large, or cannot be written with these characters.
        """
        return compile_tree(self.tree(), vocab.characters, self.kind)


class CompilationCache:
    """The automata of recent specifications, by specification and vocabulary. Thread-safe.

    One specification is compiled at a time, so that compiling takes at most one core's time.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        """Create an empty cache that keeps at most so many bytes of tables."""
        self._results: LRUCache[tuple[str, str], Automaton | StructuredOutputError] = LRUCache(max_bytes, _n_bytes)
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def compile(self, spec: StructuredOutputs, vocab: Vocabulary) -> tuple[Automaton, bool]:
        """Return the automaton of a specification, and whether it was in the cache.

        Raises:
            StructuredOutputError: As of StructuredOutputs.compile.
        """
        key = (json.dumps(spec.as_dict()), vocab.characters)
        result = self._get(key)
        was_cached = result is not None
        if result is None:
            with self._compiling:
                result = self._get(key) or self._compile(key, spec, vocab)
        if isinstance(result, StructuredOutputError):  # a copy: a raised error keeps its traceback
            e = result
            raise StructuredOutputError(e.problem, field=e.field, value=e.value, expected=e.expected)
        return result, was_cached

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
