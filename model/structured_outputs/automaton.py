"""A deterministic automaton over the characters of a vocabulary, compiled from a tree within fixed limits.

The positions of the tree's character sets are the states of a nondeterministic automaton (Glushkov 1961; Aho, Sethi and
Ullman, "Compilers", 1986, section 3.9). The subset construction makes it deterministic. Characters that no set
distinguishes share a column of the table. States from which no end can be reached are removed.

The limits count positions, states and steps of work, not seconds. So whether a pattern is accepted does not depend on
how busy the machine is, and the time and the memory of a compilation are bounded.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.errors import StructuredOutputError, short_repr
from model.structured_outputs.syntax import Alternatives, Characters, Concatenation, Node, Repeat

MAX_POSITIONS = 10_000
MAX_STATES = 10_000
MAX_TABLE_CELLS = 4_000_000
MAX_TREE_NODES = 100_000
"""Nodes of a tree, those without positions included; a node with several parents counts once for each."""
MAX_WORK = 4_000_000
"""Steps of work: about one second."""
NO_STATE = -1
"""In `next_states`: the character is not allowed."""
UNBOUNDED = -1
"""In `longest`: any number of characters can follow."""
NO_CONTINUATION = 2**31 - 1
"""In `continuations`: nothing can follow."""
_YIELD_EVERY = 4_096
_NODE_STEPS = 8
"""Steps of work that numbering a node takes, also one without positions."""
_SET_STEPS = 1_000
"""Steps of work that `re` needs to compile one set."""
_LISTED = 8


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """Which characters may follow, by state; a text begins in state 0. Every state reaches an end."""

    classes: NDArray[np.int32]  # (V,) the column of each id
    next_states: NDArray[np.int32]  # (S, C) the state after a character, or NO_STATE
    distances: NDArray[np.int32]  # (S,) the fewest characters to an end; 0: the text may end here
    longest: NDArray[np.int32]  # (S,) the most characters that can follow, or UNBOUNDED
    continuations: NDArray[np.int32] = dataclass_field(
        init=False
    )  # (S,) the fewest characters to an end after one more

    addresses: tuple[int, ...] = dataclass_field(init=False)  # lh_automaton in api.h, whose arrays these are

    def __post_init__(self) -> None:
        """Derive `continuations` and the addresses.

        Raises:
            ValueError: A table has not the layout that the C code reads.
        """
        following = np.where(self.next_states == NO_STATE, NO_CONTINUATION - 1, self.distances[self.next_states])
        nearest = following.min(axis=1, initial=NO_CONTINUATION - 1) + 1
        object.__setattr__(self, "continuations", nearest.astype(np.int32))
        tables = (self.classes, self.next_states, self.distances, self.continuations)
        if any(table.dtype != np.int32 or not table.flags.c_contiguous for table in tables):
            raise ValueError("the tables of an automaton must be contiguous int32")
        addresses = (*self.next_states.shape, *(table.ctypes.data for table in tables))
        object.__setattr__(self, "addresses", addresses)

    @property
    def shortest(self) -> int:
        """The length of the shortest text."""
        return int(self.distances[0])

    @property
    def n_bytes(self) -> int:
        """The memory of the tables."""
        return sum(a.nbytes for a in (self.classes, self.next_states, self.distances, self.longest, self.continuations))

    def allowed(self, state: int, budget: int) -> NDArray[np.bool_]:
        """Which ids (V,) may follow if at most `budget` characters may still be generated, that one included."""
        following: NDArray[np.int32] = self.next_states[state, self.classes]
        is_allowed: NDArray[np.bool_] = (following != NO_STATE) & (self.distances[following] < budget)
        return is_allowed

    def may_continue(self, state: int, budget: int) -> bool:
        """Whether any character may follow if at most `budget` may still be generated."""
        return bool(self.continuations[state] <= budget)

    def finish_reason(self, state: int, budget: int) -> Literal["length", "stop"]:
        """Why a text ends where nothing may follow: "length" if only its budget keeps it from going on."""
        return "length" if budget == 0 and self.continuations[state] != NO_CONTINUATION else "stop"

    def advance(self, state: int, ids: Iterable[int]) -> int:
        """The state after more ids, or NO_STATE."""
        for id in ids:
            if state == NO_STATE:
                return NO_STATE
            state = int(self.next_states[state, self.classes[id]])
        return state


def compile_tree(tree: Node, characters: str, field: str) -> Automaton:
    """Compile a tree for a vocabulary.

    Args:
        tree: What texts must match wholly.
        characters: Of the vocabulary, by id.
        field: Names the specification in errors.

    Raises:
        StructuredOutputError: A limit is exceeded, or no text can be written with these characters.
    """
    if n_positions(tree, field) > MAX_POSITIONS:
        raise too_many_positions(field)
    positions = _Positions(field)
    start = positions.add(tree)
    for position in start.last:
        positions.follow[position] |= positions.end
    first = start.first | (positions.end if start.nullable else 0)
    classes, class_positions, missing = _classes(positions, characters)
    rows, accepting = _subsets(positions, class_positions, first)
    return _trimmed(rows, accepting, classes, len(class_positions), field, missing)


def too_many_positions(field: str) -> StructuredOutputError:
    """The error of a specification that has more than MAX_POSITIONS."""
    return _too_large(field, f"at most {MAX_POSITIONS} characters and classes, each repeat counted")


def _too_large(field: str, limit: str) -> StructuredOutputError:
    return StructuredOutputError("is too large to compile", field=field, expected=limit)


def n_positions(tree: Node, field: str) -> int:
    """The number of positions: characters and classes, each repeat counted.

    Raises:
        StructuredOutputError: The tree has more than MAX_TREE_NODES nodes.
    """
    n_visited = 0

    def count(node: Node) -> int:
        nonlocal n_visited
        n_visited += 1
        if n_visited > MAX_TREE_NODES:
            raise _too_large(field, f"at most {MAX_TREE_NODES} parts")
        match node:
            case Characters():
                return 1
            case Concatenation():
                return sum(map(count, node.parts))
            case Alternatives():
                return sum(map(count, node.options))
            case Repeat():
                return count(node.part) * (max(node.low, 1) if node.high is None else node.high)

    return count(tree)


@dataclass(slots=True)
class _Part:
    """Where a part of the tree begins and ends."""

    nullable: bool
    first: int  # a bit for each position that it can begin with
    last: list[int]  # the positions that it can end with


@dataclass(slots=True)
class _Positions:
    """The positions of a tree, and which of them can follow each; positions are numbered by bits."""

    field: str
    sets: list[Characters] = dataclass_field(default_factory=list)  # of each position
    follow: list[int] = dataclass_field(default_factory=list)  # of each position: bits
    work: int = 0
    _yield_at: int = _YIELD_EVERY

    @property
    def end(self) -> int:
        """The bit that stands for the end of the text."""
        return 1 << len(self.sets)

    def count(self, steps: int) -> None:
        """Count steps of work on sets of bits, and let other threads run now and then."""
        self.count_plain(steps * (1 + len(self.sets) // 512))

    def count_plain(self, steps: int) -> None:
        """Count steps of work whose duration does not depend on the number of positions."""
        self.work += steps
        if self.work > self._yield_at:
            self._yield_at = self.work + _YIELD_EVERY
            time.sleep(0)
        if self.work > MAX_WORK:
            raise _too_large(self.field, f"at most {MAX_WORK} steps of compilation, which take about a second")

    def add(self, node: Node) -> _Part:
        """Number the positions of a part, in order."""
        self.count_plain(_NODE_STEPS)
        match node:
            case Characters():
                position = len(self.sets)
                self.sets.append(node)
                self.follow.append(0)
                return _Part(False, 1 << position, [position])
            case Concatenation():
                whole = _Part(True, 0, [])
                for part in node.parts:
                    whole = self._joined(whole, self.add(part))
                return whole
            case Alternatives():
                options = [self.add(option) for option in node.options]
                self.count(len(options))
                first = 0
                for option in options:
                    first |= option.first
                return _Part(any(o.nullable for o in options), first, [p for o in options for p in o.last])
            case Repeat():
                return self._repeated(node)

    def _joined(self, before: _Part, after: _Part) -> _Part:
        self._connect(before.last, after.first)
        first = before.first | after.first if before.nullable else before.first
        last = [*before.last, *after.last] if after.nullable else after.last
        return _Part(before.nullable and after.nullable, first, last)

    def _repeated(self, node: Repeat) -> _Part:
        """Copies, each of which follows the one before it; those beyond `low` may be left out."""
        if node.high == 0:
            return _Part(True, 0, [])
        n_before = len(self.sets)
        copies = max(node.low, 1) if node.high is None else node.high
        first, before, last, nullable = 0, list[int](), list[int](), True
        for i in range(copies):
            copy = self.add(node.part)
            if len(self.sets) == n_before:  # it has no positions, so neither have more copies
                return _Part(True, 0, [])
            self._connect(before, copy.first)
            first |= copy.first if i == 0 or nullable else 0
            before = [*before, *copy.last] if copy.nullable else copy.last
            nullable = nullable and copy.nullable
            if i < max(node.low, 1) and not copy.nullable:
                last = []
            last += copy.last
            if node.high is None and i == copies - 1:
                self._connect(copy.last, copy.first)
        return _Part(nullable or node.low == 0, first, last)

    def _connect(self, before: list[int], after: int) -> None:
        self.count(len(before) + 1)
        for position in before:
            self.follow[position] |= after


def _ids(characters: Characters, vocabulary: str) -> list[int]:
    """The ids of a set. The vocabulary is searched as a text: where a character stands is its id."""
    if characters.literal and not characters.without:
        at = vocabulary.find(characters.literal)
        return [at] if at >= 0 else []
    ids = [m.start() for m in re.compile(characters.source, characters.flags).finditer(vocabulary)]
    if characters.without:
        excluded = re.compile(characters.without)
        ids = [id for id in ids if not excluded.match(vocabulary[id])]
    return ids


def _classes(positions: _Positions, vocabulary: str) -> tuple[NDArray[np.int32], list[int], list[Characters]]:
    """Group the ids that no set distinguishes.

    Returns:
        The class (V,) of each id, the positions of each class as bits, and the sets that have no character.
    """
    by_set: dict[Characters, int] = {}  # the positions of a set, as bits
    for position, characters in enumerate(positions.sets):
        by_set[characters] = by_set.get(characters, 0) | 1 << position
    positions.count(len(positions.sets))
    members: list[list[int]] = [[] for _ in vocabulary]  # of each id: its sets
    missing = []
    for i, characters in enumerate(by_set):
        if not characters.literal or characters.without:
            positions.count_plain(_SET_STEPS + characters.n_folded)
        ids = _ids(characters, vocabulary)
        positions.count(len(vocabulary) // 16 + len(ids))
        if not ids:
            missing.append(characters)
        for id in ids:
            members[id].append(i)
    numbers: dict[tuple[int, ...], int] = {}
    classes = np.array([numbers.setdefault(tuple(sets), len(numbers)) for sets in members], dtype=np.int32)
    bits = list(by_set.values())
    class_positions = []
    for sets in numbers:
        positions.count(len(sets))
        union = 0
        for i in sets:
            union |= bits[i]
        class_positions.append(union)
    return classes, class_positions, missing


def _subsets(positions: _Positions, class_positions: list[int], first: int) -> tuple[list[list[int]], list[bool]]:
    """The subset construction.

    Returns:
        For each state the state after a character of each class, or NO_STATE; and whether the text may end there.
    """
    states, order = {first: 0}, [first]
    rows: list[list[int]] = []
    unions: dict[int, int] = {}
    for state in order:  # grows meanwhile
        row = [NO_STATE] * len(class_positions)
        positions.count(len(row))
        for c, mask in enumerate(class_positions):
            reached = state & mask
            if not reached:
                continue
            if reached not in unions:
                unions[reached] = _union(positions, reached)
            after = unions[reached]
            if not after:
                continue  # what would have to follow cannot be written
            if after not in states:
                states[after] = len(order)
                order.append(after)
                if len(order) > MAX_STATES or len(order) * len(row) > MAX_TABLE_CELLS:
                    raise _too_large(positions.field, f"at most {MAX_STATES} states")
            row[c] = states[after]
        rows.append(row)
    return rows, [bool(state & positions.end) for state in order]


def _union(positions: _Positions, reached: int) -> int:
    """The positions, as bits, that can follow any of some."""
    union, steps = 0, 0
    while reached:
        low = reached & -reached
        union |= positions.follow[low.bit_length() - 1]
        reached ^= low
        steps += 1
    positions.count(steps)
    return union


def _trimmed(
    rows: list[list[int]],
    accepting: list[bool],
    classes: NDArray[np.int32],
    n_classes: int,
    field: str,
    missing: list[Characters],
) -> Automaton:
    """Remove the states from which no end can be reached, and measure the distances to ends."""
    following = [set(row) - {NO_STATE} for row in rows]
    before: list[list[int]] = [[] for _ in rows]
    for state, targets in enumerate(following):
        for target in targets:
            before[target].append(state)
    distances = [0 if accepts else -1 for accepts in accepting]
    queue = deque(state for state, accepts in enumerate(accepting) if accepts)
    while queue:
        state = queue.popleft()
        for source in before[state]:
            if distances[source] < 0:
                distances[source] = distances[state] + 1
                queue.append(source)
    if distances[0] < 0:
        raise _nothing_left(field, missing)
    live = [state for state, distance in enumerate(distances) if distance >= 0]
    longest = _longest(following, before, distances)
    numbers = np.full(len(rows) + 1, NO_STATE, dtype=np.int32)  # the last one stands for NO_STATE
    numbers[live] = np.arange(len(live))
    table = np.array([rows[state] for state in live], dtype=np.int32).reshape(len(live), n_classes)
    return Automaton(
        classes=classes,
        next_states=np.ascontiguousarray(numbers[table]),
        distances=np.array([distances[state] for state in live], dtype=np.int32),
        longest=np.array([longest[state] for state in live], dtype=np.int32),
    )


def _longest(following: list[set[int]], before: list[list[int]], distances: list[int]) -> list[int]:
    """The most characters that can follow each state: states after which only measured ones come are measured."""
    longest = [UNBOUNDED] * len(following)
    left = [sum(distances[target] >= 0 for target in targets) for targets in following]
    queue = deque(state for state, n in enumerate(left) if not n and distances[state] >= 0)
    for state in queue:
        longest[state] = 0
    while queue:
        state = queue.popleft()
        for source in before[state]:
            if distances[source] < 0:
                continue
            left[source] -= 1
            longest_yet = max(longest[source], longest[state] + 1)
            longest[source] = longest_yet
            if not left[source]:
                queue.append(source)
    return [n if not left[state] else UNBOUNDED for state, n in enumerate(longest)]


def _nothing_left(field: str, missing: list[Characters]) -> StructuredOutputError:
    """The error of a specification that no text over the vocabulary matches."""
    literals = list(dict.fromkeys(m.literal for m in missing if m.literal))
    if literals:
        listed = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in literals[:_LISTED])
        more = f" and {len(literals) - _LISTED} more" if len(literals) > _LISTED else ""
        problem = f"no such text can be written: the model's vocabulary lacks {listed}{more}"
    elif missing:
        problem = f"no such text can be written: the model's vocabulary has no character of {missing[0].source}"
    else:
        problem = "no text matches"
    value = "".join(literals) or short_repr([m.source for m in missing])
    expected = "a constraint that can be written with the model's characters"
    return StructuredOutputError(problem, field=field, value=value, expected=expected)
