"""The cache of automata: one compilation for equal specifications, within its memory."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from model.errors import StructuredOutputError
from model.structured_outputs.automaton import MAX_STATES, Automaton
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary
from service.models.automaton_cache import CompilationCache
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
    size = spec.compile(ALPHABET).n_bytes + 1024
    lookups: list[bool] = []
    cache = CompilationCache(lookups.append, max_bytes=3 * size)
    for n in range(50, 40, -1):
        cache.compile(StructuredOutputs("regex", f"a{{{n}}}"), ALPHABET)
    lookups.clear()
    for _ in range(2):
        cache.compile(spec, ALPHABET)
    assert lookups == [False, True]


def test_long_specifications_and_their_errors_take_little_memory() -> None:
    """Neither the text of a specification is kept nor the value that an error names."""
    cache = CompilationCache()
    vocab = Vocabulary("ab")

    def refuse(n: int) -> None:
        for schema in ({"type": "x" * 50_000, "title": str(n)}, {"title": str(n), "y" * 50_000: 1}):
            with pytest.raises(StructuredOutputError) as refusal:
                cache.compile(StructuredOutputs("json", schema), vocab)
            assert refusal.value.expected

    refuse(0)
    tracemalloc.start()
    try:
        for n in range(1, 21):
            refuse(n)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = cache._results.currsize
    assert taken < counted + (1 << 20)


def test_the_messages_of_errors_are_counted() -> None:
    """A message names a field, and names of fields can be long: such errors do not stay beyond the limit."""
    lookups: list[bool] = []
    cache = CompilationCache(lookups.append, max_bytes=500_000)
    specs = [StructuredOutputs("json", {"title": str(n), "y" * 50_000: 1}) for n in range(5)]
    for spec in [*specs, specs[0]]:
        with pytest.raises(StructuredOutputError):
            cache.compile(spec, ALPHABET)
    assert lookups == [False] * 6
