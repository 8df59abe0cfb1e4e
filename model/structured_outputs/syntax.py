"""Regular expressions as trees. The syntax and the character classes are those of Python's `re`.

`re`'s own parser reads the pattern, and `re` itself says which characters a class contains. So an expression means here
what it means to `re.fullmatch`. What is no regular language, or depends on how a match is searched for, is refused:
look-around, back-references, word boundaries, atomic groups and possessive repeats.
"""

from __future__ import annotations

import re
import re._constants as ops  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from model.errors import StructuredOutputError, short_repr

MAX_PATTERN_CHARS = 10_000
_MAX_DEPTH = 100
_SET_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_CATEGORIES = {
    ops.CATEGORY_DIGIT: r"\d",
    ops.CATEGORY_NOT_DIGIT: r"\D",
    ops.CATEGORY_SPACE: r"\s",
    ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w",
    ops.CATEGORY_NOT_WORD: r"\W",
}
_AT_START = (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING)
_AT_END = (ops.AT_END, ops.AT_END_STRING)
_REFUSED = {
    ops.ASSERT: "look-ahead or look-behind",
    ops.ASSERT_NOT: "negative look-ahead or look-behind",
    ops.FAILURE: "negative look-ahead",
    ops.GROUPREF: "a back-reference",
    ops.GROUPREF_EXISTS: "a conditional group",
    ops.ATOMIC_GROUP: "an atomic group",
    ops.POSSESSIVE_REPEAT: "a possessive repeat",
}


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of a set."""

    source: str  # the set as a regular expression
    flags: int = 0  # of the expression
    literal: str = ""  # the character, if the set is that one only
    without: str = ""  # the characters of this set, also an expression, are left out
    n_folded: int = 0  # the characters whose other cases `re` looks up when it compiles the set


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Parts one after the other; none is the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    """One of several."""

    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part repeated `low` to `high` times; None: any number of times."""

    part: Node
    low: int
    high: int | None


Node = Characters | Concatenation | Alternatives | Repeat
EMPTY = Concatenation(())


def parse(pattern: str, field: str = "regex") -> Node:
    """Parse a regular expression.

    Args:
        pattern: In the syntax of Python's `re`.
        field: Names the pattern in errors.

    Raises:
        StructuredOutputError: It is too long, malformed or not regular.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        expected = f"at most {MAX_PATTERN_CHARS} characters"
        raise StructuredOutputError(f"got {len(pattern)} characters", field=field, value=pattern, expected=expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constructs that a later Python may read in another way
            tree = parser.parse(pattern)
        return _Reader(pattern, field).concatenation(tree.data, tree.state.flags, 0, True, True)
    except RecursionError as e:
        raise _too_deep(pattern, field) from e
    except StructuredOutputError:
        raise
    except (re.error, ValueError, OverflowError) as e:
        expected = "a regular expression in the syntax of Python's re"
        raise StructuredOutputError(
            f"{short_repr(pattern)} is malformed: {e}", field=field, value=pattern, expected=expected
        ) from e


def literal(text: str) -> Node:
    """The tree of one text."""
    return Concatenation(tuple(_literal(ord(c)) for c in text))


def choice(texts: Iterable[str]) -> Node:
    """The tree of one of several texts."""
    return Alternatives(tuple(map(literal, texts)))


def without(node: Node, characters: str) -> Node:
    """The same tree, of which no set contains certain characters.

    Args:
        node: The tree.
        characters: A regular expression of one character.
    """
    match node:
        case Characters():
            return replace(node, without=characters)
        case Concatenation():
            return Concatenation(tuple(without(part, characters) for part in node.parts))
        case Alternatives():
            return Alternatives(tuple(without(option, characters) for option in node.options))
        case Repeat():
            return replace(node, part=without(node.part, characters))


def _too_deep(pattern: str, field: str) -> StructuredOutputError:
    expected = f"groups nested at most {_MAX_DEPTH} deep"
    return StructuredOutputError("has groups that are nested too deep", field=field, value=pattern, expected=expected)


def _escape(code_point: int) -> str:
    """A character as a regular expression, readable where it is a letter or a digit."""
    character = chr(code_point)
    return character if character.isascii() and character.isalnum() else f"\\U{code_point:08x}"


def _literal(code_point: int) -> Characters:
    return Characters(_escape(code_point), literal=chr(code_point))


def _n_folded(members: Sequence[tuple[Any, Any]]) -> int:
    """The characters of the ranges of a class; `re` looks up the cases of those up to U+FFFF one by one."""
    ranges = [value for op, value in members if op is ops.RANGE]
    return sum(max(min(high, 0xFFFF) - low + 1, 0) for low, high in ranges)


def _is_empty(op: Any, value: Any) -> bool:
    """Whether an item of a parsed expression matches nothing but the empty text."""
    if op is ops.SUBPATTERN:
        return all(_is_empty(*item) for item in value[3].data)
    return op is ops.AT


class _Reader:
    """Turns the tree of `re`'s parser into ours. `start` and `end`: whether the text begins or ends at the item."""

    def __init__(self, pattern: str, field: str) -> None:
        self._pattern = pattern
        self._field = field

    def concatenation(self, items: Sequence[tuple[Any, Any]], flags: int, depth: int, start: bool, end: bool) -> Node:
        if depth > _MAX_DEPTH:
            raise _too_deep(self._pattern, self._field)
        filled = [i for i, item in enumerate(items) if not _is_empty(*item)]
        first, last = (filled[0], filled[-1]) if filled else (len(items), -1)
        parts = []
        for i, (op, value) in enumerate(items):
            parts.append(self._node(op, value, flags, depth, start and i <= first, end and i >= last))
        return parts[0] if len(parts) == 1 else Concatenation(tuple(parts))

    def _node(self, op: Any, value: Any, flags: int, depth: int, start: bool, end: bool) -> Node:
        if op is ops.BRANCH:
            options = value[1]
            return Alternatives(tuple(self.concatenation(o.data, flags, depth + 1, start, end) for o in options))
        if op is ops.SUBPATTERN:
            _, added, removed, inner = value
            return self.concatenation(inner.data, (flags | added) & ~removed, depth + 1, start, end)
        if op is ops.MAX_REPEAT or op is ops.MIN_REPEAT:
            low, high, inner = value
            part = self.concatenation(inner.data, flags, depth + 1, False, False)
            return Repeat(part, int(low), None if high is ops.MAXREPEAT else int(high))
        if op is ops.AT:
            return self._anchor(value, start, end)
        return self._characters(op, value, flags & _SET_FLAGS)

    def _characters(self, op: Any, value: Any, flags: int) -> Node:
        """One character."""
        if op is ops.LITERAL:
            return Characters(_escape(value), flags) if flags & re.IGNORECASE else _literal(value)
        if op is ops.NOT_LITERAL:
            return Characters(f"[^{_escape(value)}]", flags)
        if op is ops.ANY:
            return Characters(".", flags)
        if op is ops.IN:
            source = f"[{''.join(self._member(*member) for member in value)}]"
            return Characters(source, flags, n_folded=_n_folded(value) if flags & re.IGNORECASE else 0)
        raise self._refuse(_REFUSED.get(op, str(op).lower()))

    def _anchor(self, anchor: Any, start: bool, end: bool) -> Node:
        if (anchor in _AT_START and start) or (anchor in _AT_END and end):
            return EMPTY
        if anchor in _AT_START or anchor in _AT_END:
            raise self._refuse("an anchor inside the expression; the whole text matches without anchors")
        raise self._refuse("a word boundary")

    def _member(self, op: Any, value: Any) -> str:
        """A member of a class as source."""
        if op is ops.NEGATE:
            return "^"
        if op is ops.LITERAL:
            return _escape(value)
        if op is ops.RANGE:
            return f"{_escape(value[0])}-{_escape(value[1])}"
        return _CATEGORIES[value]

    def _refuse(self, feature: str) -> StructuredOutputError:
        expected = "a regular expression without look-around, back-references, boundaries, atomic or possessive parts"
        problem = f"{short_repr(self._pattern)} has {feature}"
        return StructuredOutputError(problem, field=self._field, value=self._pattern, expected=expected)
