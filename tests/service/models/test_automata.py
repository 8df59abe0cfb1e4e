"""The cache of automata: one compilation for equal specifications, within its memory."""

from __future__ import annotations

import threading

import pytest

from model.errors import StructuredOutputError
from model.structured_outputs.automaton import MAX_STATES, Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary
from service.models.automata import CompilationCache
from tests.conftest import ALPHABET


def test_equal_specifications_are_compiled_once() -> None:
    """Also when many threads ask at the same time; a refusal is remembered, too, and another vocabulary is another."""
    lookups: list[bool] = []
    cache, spec = CompilationCache(lookups.append), StructuredOutputs("regex", "[a-z]{1,2000}")
    results: list[Automaton] = []
    threads = [threading.Thread(target=lambda: results.append(cache.compile(spec, ALPHABET))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert len(set(map(id, results))) == 1
    lookups.clear()
    assert cache.compile(spec, ALPHABET) is results[0]
    assert cache.compile(spec, Vocabulary("abc")) is not results[0]
    assert lookups == [True, False]
    hostile = StructuredOutputs("regex", "(a|b)*a(a|b){18}")
    errors = []
    for _ in range(2):
        with pytest.raises(StructuredOutputError, match=str(MAX_STATES)) as refusal:
            cache.compile(hostile, ALPHABET)
        errors.append(refusal.value)
    assert errors[0] is not errors[1]
    assert str(errors[0]) == str(errors[1])


def test_the_cache_forgets_what_was_not_used_for_long() -> None:
    """Its tables take at most the memory that it may use."""
    spec = StructuredOutputs("regex", "a{50}")
    size = spec.compile(ALPHABET).n_bytes
    lookups: list[bool] = []
    cache = CompilationCache(lookups.append, max_bytes=3 * size)
    for n in range(50, 40, -1):
        cache.compile(StructuredOutputs("regex", f"a{{{n}}}"), ALPHABET)
    lookups.clear()
    for _ in range(2):
        cache.compile(spec, ALPHABET)
    assert lookups == [False, True]
