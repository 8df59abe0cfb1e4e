"""What a text must be: a regular expression, one of several texts, or JSON of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from model.errors import StructuredOutputError
from model.structured_outputs.automaton import MAX_POSITIONS, Automaton, compile_tree, too_many_positions
from model.structured_outputs.json_schema import any_object, tree_of
from model.structured_outputs.syntax import Node, choice, parse
from model.text.vocab import Vocabulary

Kind = Literal["regex", "choice", "json", "json_object"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_CHOICES = 1000
MAX_JSON_BYTES = 64 << 10
"""Of a specification that a client sends: it is stored with the session's turn."""


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

    @property
    def is_too_long(self) -> bool:
        """Whether its JSON is longer than MAX_JSON_BYTES."""
        return len(json.dumps(self.as_dict(), ensure_ascii=False).encode("utf-8", "surrogatepass")) > MAX_JSON_BYTES

    def tree(self) -> Node:
        """The tree of the texts that it accepts.

        Raises:
            StructuredOutputError: The value cannot be used.
        """
        match self.kind, self.value:
            case "regex", str(pattern):
                return parse(pattern)
            case "choice", list(texts) if 1 <= len(texts) <= MAX_CHOICES and all(isinstance(t, str) for t in texts):
                if sum(map(len, texts)) > MAX_POSITIONS:
                    raise too_many_positions(self.kind)
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
