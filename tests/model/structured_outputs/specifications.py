"""Random patterns and schemas, and texts that a stepper writes for them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from model.stepper import Stepper
from model.structured_outputs.automaton import Automaton
from tests.random_batching import Progress, Text, advance, random_texts

_ATOMS = [
    "a",
    "b",
    "e",
    " ",
    "'",
    "!",
    "[a-f]",
    "[^a-x]",
    ".",
    r"\w",
    r"\s",
    r"\n",
    "(?i:B)",
    "(?i:[^k-z])",
    "[' !]",
    "",
]
_REPEATS = ["?", "*", "+", "{2}", "{0,3}", "{2,5}", "{3,}", "*?", "+?"]


def patterns() -> st.SearchStrategy[str]:
    """Regular expressions over the tests' alphabet, each also with anchors."""

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.one_of(
            st.lists(inner, min_size=1, max_size=4).map("".join),
            st.lists(inner, min_size=2, max_size=3).map(lambda options: f"(?:{'|'.join(options)})"),
            st.tuples(inner, st.sampled_from(_REPEATS)).map(lambda pair: f"({pair[0]}){pair[1]}"),
        )

    inner = st.recursive(st.sampled_from(_ATOMS), extend, max_leaves=12)
    return st.tuples(inner, st.sampled_from(["{}", "^(?:{})$", r"\A(?:{})\Z"])).map(lambda p: p[1].format(p[0]))


def random_schema(rng: Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema of the keywords that are supported."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "format", "pattern", "any"]
    kind = rng.choice(kinds + (["object", "array", "anyOf", "types"] * 2 if depth < 2 else []))
    low = rng.randint(0, 3)
    if kind == "object":
        names = rng.sample(["name", "age", "a b", 'q"', "x", "long_name"], rng.randint(0, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.5]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if kind == "array":
        limits = {"minItems": low, "maxItems": low + rng.randint(0, 3)} if rng.random() < 0.7 else {}
        return {"type": "array", "items": random_schema(rng, depth + 1), **limits}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    return _scalar_schema(rng, kind, low)


def _scalar_schema(rng: Random, kind: str, low: int) -> dict[str, Any]:
    least, greatest = sorted(rng.randint(-1200, 1200) for _ in range(2))
    fewest, most = sorted(rng.randint(-30, 30) for _ in range(2))
    integers = rng.choice([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"), ("minimum", "minimum")])
    values: list[Any] = ["x", "yes", 1, -2.5, None, True, {"k": [1, "v"]}, 'quote"d']
    schemas: dict[str, dict[str, Any]] = {
        "string": {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 6)},
        "integer": {"type": "integer", integers[0]: least - 1, integers[1]: greatest + 1},
        "number": rng.choice([{"type": "number"}, {"type": "number", "minimum": fewest, "maximum": most}]),
        "boolean": {"type": "boolean"},
        "null": {"type": "null"},
        "enum": {"enum": rng.sample(values, 3)},
        "const": {"const": rng.choice(values)},
        "format": {"type": "string", "format": rng.choice(["date", "time", "date-time", "uuid", "ipv4"])},
        "pattern": {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}$", "a|b+", "(?:x.)*", r"\w{1,3}"])},
        "types": {"type": rng.sample(["string", "integer", "boolean", "null"], 2)},
        "any": {},
    }
    return schemas[kind]


def written_texts(
    stepper: Stepper, automaton: Automaton, rng: Random, n_texts: int, longest: int
) -> list[tuple[Text, Progress]]:
    """Texts of one automaton with random parameters, prompts and budgets from the shortest match upward, in a block."""
    texts = [
        Text(
            t.prompt,
            automaton.shortest + rng.choice([0, 1, rng.randint(0, longest)]),
            t.seed,
            t.params,
            t.bias,
            automaton,
        )
        for t in random_texts(rng, n_texts, len(automaton.classes))
    ]
    texts = [t for t in texts if automaton.may_continue(0, t.length)]
    progress = [Progress() for _ in texts]
    for slot in range(len(texts)):
        stepper.write(slot, None)
    if texts:
        advance(stepper, texts, progress, list(range(len(texts))), [t.steps for t in texts])
    return list(zip(texts, progress, strict=True))


def random_walk(automaton: Automaton, characters: str, rng: Random, budget: int) -> str:
    """A text that takes every allowed character with the same probability."""
    state, text = 0, ""
    while automaton.may_continue(state, budget):
        id = rng.choice(np.flatnonzero(automaton.allowed(state, budget)).tolist())
        text, state, budget = text + characters[id], automaton.advance(state, [id]), budget - 1
    return text


def encode(characters: str, text: str) -> Sequence[int]:
    """The ids of a text, all of whose characters there are."""
    return [characters.index(c) for c in text]
