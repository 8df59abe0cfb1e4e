"""Patterns become automata that accept what `re.fullmatch` accepts, know their ends, and stay within limits."""

from __future__ import annotations

import gc
import re
import threading
import time
import tracemalloc
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import StructuredOutputError
from model.structured_outputs import automaton as automaton_module
from model.structured_outputs.automaton import NO_STATE, UNBOUNDED, Automaton, compile_tree
from model.structured_outputs.specification import StructuredOutputs
from model.structured_outputs.syntax import Alternatives, Node, parse
from model.text.vocab import Vocabulary
from tests.conftest import ALPHABET
from tests.model.structured_outputs.specifications import encode, patterns, random_walk

CHARACTERS = ALPHABET.characters


def compiled(pattern: str, characters: str = CHARACTERS) -> Automaton:
    return compile_tree(parse(pattern), characters, "regex")


@given(pattern=patterns(), texts=st.lists(st.text(CHARACTERS, max_size=8), max_size=20), seed=st.integers(0, 2**32))
def test_what_is_accepted_is_what_re_matches_wholly(pattern: str, texts: list[str], seed: int) -> None:
    """Random texts and texts of the automaton itself; where `re` matches nothing, the error says so."""
    try:
        automaton = compiled(pattern)
    except StructuredOutputError:
        assert not any(re.fullmatch(pattern, text) for text in texts)
        return
    rng = Random(seed)
    walks = [random_walk(automaton, CHARACTERS, rng, automaton.shortest + rng.randint(0, 20)) for _ in range(10)]
    assert all(re.fullmatch(pattern, walk) for walk in walks)
    for text in [*texts, *walks, *(walk[:-1] for walk in walks)]:
        state = automaton.advance(0, encode(CHARACTERS, text))
        assert (state != NO_STATE and automaton.distances[state] == 0) == bool(re.fullmatch(pattern, text))


@given(pattern=patterns())
def test_every_state_knows_how_far_the_ends_are(pattern: str) -> None:
    """The tables equal their definitions, computed by going through all texts of the automaton, length by length."""
    try:
        automaton = compiled(pattern)
    except StructuredOutputError:
        return
    n = len(automaton.distances)
    following = [set(row.tolist()) - {NO_STATE} for row in automaton.next_states]
    for state in range(n):
        reached, lengths, length = {state}, [], 0
        while reached and length <= n:
            if any(automaton.distances[s] == 0 for s in reached):
                lengths.append(length)
            reached, length = set().union(*(following[s] for s in reached)), length + 1
        assert automaton.distances[state] == lengths[0]
        assert automaton.longest[state] == (UNBOUNDED if reached else lengths[-1])
        later = [n for n in lengths if n > 0]
        assert automaton.may_continue(state, later[0] if later else 2**31 - 2) == bool(later)
        assert not automaton.may_continue(state, later[0] - 1 if later else 2**31 - 2)


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("a|ab", ["a", "ab"], ["b", "aba"]),
        ("a*?", ["", "aaa"], ["b"]),
        ("x{,2}", ["", "xx"], ["xxx"]),
        ("^ab$|^c$", ["ab", "c"], ["a", "abc"]),
        ("(?i)AB", ["ab"], ["b"]),
        ("(?x) a  b # both", ["ab"], ["a b"]),
        ("(?s:.)", ["\n", "a"], [""]),
        (".", ["a"], ["\n"]),
        ("(a|(b))(?P<name>c)", ["ac", "bc"], ["c"]),
    ],
)
def test_the_syntax_is_that_of_re(pattern: str, accepted: list[str], refused: list[str]) -> None:
    """Alternatives of which one begins the other, lazy repeats, anchors and flags."""
    automaton = compiled(pattern)
    for text in [*accepted, *refused]:
        state = automaton.advance(0, encode(CHARACTERS, text))
        assert (state != NO_STATE and automaton.distances[state] == 0) == (text in accepted)
        assert bool(re.fullmatch(pattern, text)) == (text in accepted)


HOSTILE = {
    "exponential": "(a|b)*a(a|b){18}",
    "exponential, long": ".*" + "|".join(f".*{c}.{{{n}}}" for n, c in enumerate("abcdefghij", 10)),
    "huge counted repeats": "(a{1,1000}){1,1000}",
    "huge count": "a{4294967294}",
    "deeply nested": "(" * 4000 + "a" + ")" * 4000,
    "nested repeats": "(" * 90 + "a" + "){1,9}" * 90,
    "optional parts": "(?:.?){5000}",
    "many optional parts": "(?:" + ".?" * 30 + "){300}",
    "too long": "a" * 20_000,
    "look-ahead": "(?=a)a",
    "look-behind": "a(?<=a)",
    "negative look-ahead": "(?!a)b",
    "back-reference": "(a)\\1",
    "conditional": "(a)?(?(1)b|c)",
    "possessive": "a*+a",
    "atomic": "(?>a|ab)b",
    "word boundary": "\\ba",
    "inner anchor": "a^b",
    "invalid escape": "\\U99999999",
    "invalid hexadecimal": "\\x1",
    "unterminated": "[a",
    "bad range": "[z-a]",
    "locale": "(?L)a",
    "number too large": "a{99999999999999999999}",
    "lone surrogate": "\ud800",
}
LABORIOUS = {
    "copies of empty alternatives": f"(?:{'|' * 300}a){{10000}}",
    "ranges without case": "(?i)" + "".join(f"[{chr(0x62 + i)}-\uffff]" for i in range(1_900)),
    "ranges without case in one class": f"(?i)[{''.join(f'{chr(0x62 + i)}-{chr(0xFFFF)}' for i in range(3_000))}]",
}


@pytest.mark.parametrize("kind", [*HOSTILE, *LABORIOUS])
def test_a_hostile_pattern_is_refused_with_a_reason(kind: str) -> None:
    """The error names the pattern's field and what is accepted."""
    with pytest.raises(StructuredOutputError) as refusal:
        compiled({**HOSTILE, **LABORIOUS}[kind])
    assert refusal.value.field == "regex"
    assert refusal.value.expected


def test_refusing_takes_little_memory_and_lets_other_threads_run() -> None:
    """The memory is back afterwards; meanwhile another thread never waits long for the interpreter."""
    waits, is_over = [0.0], threading.Event()

    def other_thread() -> None:
        while not is_over.is_set():
            before = time.perf_counter()
            time.sleep(0.001)
            waits.append(time.perf_counter() - before)

    thread = threading.Thread(target=other_thread)
    tracemalloc.start()
    thread.start()
    try:
        for pattern in HOSTILE.values():
            with pytest.raises(StructuredOutputError):
                compiled(pattern)
        peak = tracemalloc.get_traced_memory()[1]
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        is_over.set()
        thread.join()
        tracemalloc.stop()
    assert peak < 200 << 20
    assert left < 2 << 20
    assert np.median(waits) < 0.1


def test_the_error_says_which_character_is_missing() -> None:
    """Parts that cannot be written are left out; if nothing is left, the error names what the vocabulary lacks."""
    assert compiled("a|€").advance(0, encode(CHARACTERS, "a")) != NO_STATE
    with pytest.raises(StructuredOutputError, match=r"lacks '€' \(U\+20AC\)"):
        compiled("a€|b€")
    with pytest.raises(StructuredOutputError, match=r"no character of \[\\d\]"):
        compiled(r"\d+")


def test_characters_that_no_set_distinguishes_share_a_column() -> None:
    """A table over a vocabulary of many thousand characters is small, and exact."""
    vocabulary = Vocabulary("".join(map(chr, range(0x20, 0x7F))) + "".join(map(chr, range(0x4E00, 0x9FFF))))
    automaton = compiled(r"[\u4e00-\u4fff]{2,500}, \w+", vocabulary.characters)
    assert len(automaton.classes) == len(vocabulary)
    assert automaton.next_states.shape[1] < 8
    assert automaton.n_bytes < 1 << 20
    assert automaton.advance(0, vocabulary.encode("一三, 龙a")) != NO_STATE
    assert automaton.advance(0, vocabulary.encode("一龙")) == NO_STATE


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({}, ""),
        ({"regex": "a", "choice": ["b"]}, ""),
        ({"grammar": "a"}, ""),
        ({"regex": 3}, "regex"),
        ({"choice": []}, "choice"),
        ({"choice": ["a", 1]}, "choice"),
        ({"choice": ["a"] * 1001}, "choice"),
        ({"json_object": False}, "json_object"),
        ({"json": "x"}, "json"),
    ],
)
def test_a_specification_that_is_none_is_refused(value: dict[str, object], field: str) -> None:
    """The error names the field, the value and what is accepted."""
    with pytest.raises(StructuredOutputError) as refusal:
        StructuredOutputs.from_dict(value).compile(ALPHABET)
    assert refusal.value.field == field
    assert refusal.value.expected


def test_a_tree_whose_parts_are_shared_is_counted_within_a_limit() -> None:
    """A node with two parents counts twice. 40 doublings would take forever if they were all visited."""
    shared: Node = parse("a")
    empty: Node = parse("")
    for _ in range(40):
        shared, empty = Alternatives((shared, shared)), Alternatives((empty, empty))
    for tree in (shared, empty):
        with pytest.raises(StructuredOutputError, match="too large"):
            compile_tree(tree, CHARACTERS, "regex")


@pytest.mark.parametrize(
    ("pattern", "least"),
    [("(?:||||a){1000}", 5_000), ("(?:(?:a{1}){1}){1000}", 3_000), ("(?i)[b-\uffff]", 65_000), ("[ab][cd]", 1_000)],
)
def test_all_work_is_counted(pattern: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty alternatives, each level of each copy, and the sets that `re` compiles: no work escapes the limit."""
    monkeypatch.setattr(automaton_module, "MAX_WORK", least)
    with pytest.raises(StructuredOutputError, match=f"{least} steps"):
        compiled(pattern)
