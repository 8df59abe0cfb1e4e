"""JSON schemas become automata all of whose texts a JSON-schema validator accepts; what is not supported is refused."""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from model.errors import StructuredOutputError
from model.structured_outputs import json_schema, syntax
from model.structured_outputs.automaton import MAX_POSITIONS, NO_STATE, Automaton
from model.structured_outputs.json_schema import MAX_DEPTH, MAX_NESTING
from model.structured_outputs.specification import StructuredOutputs
from model.text.vocab import Vocabulary
from tests.model.structured_outputs.specifications import encode, random_schema, random_walk

VOCAB = Vocabulary("\n" + "".join(map(chr, range(0x20, 0x7F))) + "ßé")
CHECKER = jsonschema.Draft202012Validator.FORMAT_CHECKER


def compiled(schema: Any) -> Automaton:
    return StructuredOutputs("json", schema).compile(VOCAB)


def accepts(automaton: Automaton, text: str) -> bool:
    state = automaton.advance(0, encode(VOCAB.characters, text))
    return state != NO_STATE and bool(automaton.distances[state] == 0)


@pytest.mark.parametrize("seed", range(50))
def test_every_text_is_valid(seed: int) -> None:
    """Random schemas of all supported keywords, random texts, formats checked too."""
    rng = Random(seed)
    schema = random_schema(rng)
    automaton = compiled(schema)
    for _ in range(100):
        text = random_walk(automaton, VOCAB.characters, rng, automaton.shortest + rng.randint(0, 40))
        jsonschema.validate(json.loads(text), schema, format_checker=CHECKER)


@pytest.mark.parametrize(
    ("schema", "accepted", "refused"),
    [
        ({"type": "integer", "minimum": -12, "maximum": 105}, range(-12, 106), [-13, 106, 1000, -100]),
        ({"type": "integer", "exclusiveMinimum": 7, "exclusiveMaximum": 10}, [8, 9], [7, 10]),
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.25, 1.0], [1.5, -0.5, 2]),
        ({"type": "integer"}, [0, -5, 10**15 - 1], [10**15, 1.5]),
        ({"enum": ["a", 1, None, {"k": [1]}]}, ["a", 1, None, {"k": [1]}], ["b", 2]),
        ({"type": "string", "enum": ["a", 1]}, ["a"], [1]),
        ({"const": "é"}, ["é"], ["e"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}, [[None], [None] * 2], [[]]),
        ({"type": ["boolean", "null"]}, [True, False, None], [2]),
        (True, ["x", 1.5, None, True], [[], {}]),
        ({"$defs": {"n": {"type": "null"}}, "type": "array", "items": {"$ref": "#/$defs/n"}}, [[], [None]], [[1]]),
        ({"maxLength": 1}, ["", "a"], ["ab", 1]),
    ],
)
def test_which_values_are_accepted(schema: Any, accepted: list[Any], refused: list[Any]) -> None:
    """Compact JSON of each value."""
    automaton = compiled(schema)
    for value in [*accepted, *refused]:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        assert accepts(automaton, text) == (value in list(accepted)), text


def test_properties_that_are_not_required_may_be_left_out_in_any_combination() -> None:
    """In the order of the schema, with and without a space after commas and colons."""
    null = {"type": "null"}
    automaton = compiled({"properties": dict.fromkeys("abcd", null), "required": ["b"]})
    for text in ('{"b":null}', '{"a":null,"b":null}', '{"a": null, "b": null, "d": null}', '{"b":null,"c":null}'):
        assert accepts(automaton, text)
    for text in ("{}", '{"a":null}', '{"b":null,"a":null}', '{"b":null,}', '{"b":null,"e":null}', '{ "b":null}'):
        assert not accepts(automaton, text)
    optional = compiled({"properties": dict.fromkeys("ab", null)})
    assert all(accepts(optional, text) for text in ("{}", '{"a":null}', '{"b":null}', '{"a":null,"b":null}'))


def test_strings_need_no_escapes_that_were_not_written() -> None:
    """A pattern inside a string never writes a quotation mark, a backslash or a control character."""
    automaton = compiled({"type": "string", "pattern": "[\\s\\S]{1,3}"})
    for seed in range(200):
        json.loads(random_walk(automaton, VOCAB.characters, Random(seed), automaton.shortest + 2))
    assert accepts(compiled({"type": "string"}), '"a\\"b\\\\"')
    assert not accepts(compiled({"type": "string"}), '"a"b"')


def test_a_json_object_is_flat_and_valid() -> None:
    """What response_format json_object means: a limited form of it, of which every text is an object."""
    automaton = StructuredOutputs("json_object", True).compile(VOCAB)
    for seed in range(200):
        assert isinstance(json.loads(random_walk(automaton, VOCAB.characters, Random(seed), 2 + seed)), dict)


def test_a_model_of_pydantic_can_be_used() -> None:
    """The schemas that pydantic makes of nested models, optional fields, literals and limits."""
    from typing import Literal

    from pydantic import BaseModel, Field

    class Address(BaseModel):
        street: str = Field(max_length=8)
        number: int = Field(ge=1, le=999)

    class Person(BaseModel):
        name: str = Field(min_length=1, max_length=6)
        kind: Literal["friend", "foe"]
        home: Address
        work: Address | None = None
        tags: list[str] = Field(default_factory=list, max_length=2)

    automaton = compiled(Person.model_json_schema())
    for seed in range(100):
        text = random_walk(automaton, VOCAB.characters, Random(seed), automaton.shortest + seed)
        Person.model_validate_json(text)


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"type": "integer", "multipleOf": 3}, "json.multipleOf"),
        ({"oneOf": [{"type": "null"}]}, "json.oneOf"),
        ({"not": {}}, "json.not"),
        ({"type": "array", "uniqueItems": True}, "json.uniqueItems"),
        ({"type": "object", "patternProperties": {}}, "json.patternProperties"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "json.properties.a.type"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "json.properties.a.$ref"),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}, "json.$ref.items.$ref"),
        ({"$ref": "https://example.org/schema"}, "json.$ref"),
        ({"$ref": "#/$defs/none"}, "json.$ref"),
        ({"type": "object", "required": ["a"]}, "json.required"),
        ({"type": "string", "minLength": -1}, "json.minLength"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "json.maxLength"),
        ({"type": "string", "pattern": "a", "maxLength": 2}, "json.maxLength"),
        ({"type": "string", "pattern": "("}, "json.pattern"),
        ({"type": "string", "format": "email"}, "json.format"),
        ({"type": "number", "minimum": 0.5}, "json.minimum"),
        ({"type": "number", "exclusiveMinimum": 0}, "json.exclusiveMinimum"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "json"),
        ({"enum": []}, "json.enum"),
        ({"type": "string", "enum": [1]}, "json.enum"),
        ({"anyOf": []}, "json.anyOf"),
        ({"const": 1, "minimum": 0}, "json.minimum"),
        ({"type": "string", "maxLength": 10**9}, "json"),
        (False, "json"),
        (None, "json"),
        ("string", "json"),
        ([], "json"),
        ({"type": "array", "items": False}, "json.items"),
        ({"type": "integer", "minimum": math.inf}, "json.minimum"),
        ({"type": "number", "maximum": math.nan}, "json.maximum"),
        ({"const": math.inf}, "json.const"),
        ({"enum": [1, {"a": [-math.inf]}]}, "json.enum.1.a.0"),
        ({"type": "null", "default": math.nan}, "json.default"),
        ({"properties": {"a": True}, "required": [["a"]]}, "json.required"),
        ({"properties": {"a": True}, "required": ["a", "a"]}, "json.required"),
        ({"type": ["null"] * 8}, "json.type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(schema: Any, field: str) -> None:
    """No keyword is ignored: a text would not be valid."""
    with pytest.raises(StructuredOutputError) as refusal:
        compiled(schema)
    assert refusal.value.field == field
    assert refusal.value.expected


def test_a_schema_that_grows_without_end_is_refused() -> None:
    """Depth and size are limited before anything is compiled: references double a schema at each level."""
    deep: dict[str, Any] = {"type": "null"}
    for _ in range(MAX_DEPTH + 1):
        deep = {"type": "array", "items": deep}
    doubled: dict[str, Any] = {"d0": {"type": "null"}}
    for n in range(1, 30):
        reference = {"$ref": f"#/$defs/d{n - 1}"}
        doubled[f"d{n}"] = {"properties": {"a": reference, "b": reference}, "required": ["a", "b"]}
    for schema in (deep, {"$defs": doubled, "$ref": "#/$defs/d29"}):
        with pytest.raises(StructuredOutputError, match="too large"):
            compiled(schema)


def _repeated(definition: Any, times: int) -> Any:
    return {"$defs": {"d": definition}, "anyOf": [{"$ref": "#/$defs/d"}] * times}


def _optional(depth: int) -> Any:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"properties": {"a": {"type": "null"}, "b": schema}}
    return schema


def _nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return {"const": value}


SMALL_BUT_HUGE = {
    "objects in optional properties": _optional(MAX_DEPTH - 1),
    "a long text behind many references": _repeated({"const": "a" * 9_000}, 4_000),
    "a long pattern behind many references": _repeated({"pattern": f"[{'ab' * 4_000}]"}, 4_000),
    "a long list behind many references": _repeated({"type": "null", "enum": [1] * 9_000 + [None]}, 4_000),
    "numbers behind many references": _repeated(
        {"type": "integer", "minimum": 12_345, "maximum": 98_765_432_101}, 4_000
    ),
    "strings": {"anyOf": [{"type": "string"}] * 4_000},
    "optional properties": {"properties": {f"p{i}": {"type": "null"} for i in range(4_900)}},
    "short optional properties": {"properties": {chr(0x4E00 + i): {"const": 1} for i in range(1_000)}},
    "properties that are not allowed": _repeated({"properties": {f"p{i}": False for i in range(9_000)}}, 4_000),
    "a deep value": _nested(MAX_NESTING + 1),
}


@pytest.mark.parametrize("kind", SMALL_BUT_HUGE)
def test_what_is_read_is_counted_before_it_is_built(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short schema of a huge tree is refused after little work: so few characters and nodes have been made."""
    made = 0

    class Characters(syntax.Characters):
        def __new__(cls, *_: Any, **__: Any) -> Characters:
            nonlocal made
            made += 1
            return super().__new__(cls)

    class Concatenation(syntax.Concatenation):
        def __new__(cls, *_: Any) -> Concatenation:
            nonlocal made
            made += 1
            return super().__new__(cls)

    for module in (syntax, json_schema):
        monkeypatch.setattr(module, "Concatenation", Concatenation)
    monkeypatch.setattr(syntax, "Characters", Characters)
    assert compiled(True)
    assert made
    with pytest.raises(StructuredOutputError, match="too large"):
        compiled(SMALL_BUT_HUGE[kind])
    assert made <= 4 * MAX_POSITIONS


def test_many_optional_properties_do_not_nest() -> None:
    """Each can be the first that is written; the tree of 60 of them is no deeper than that of two."""

    def depth(node: syntax.Node) -> int:
        match node:
            case syntax.Characters():
                return 0
            case syntax.Concatenation():
                return 1 + max(map(depth, node.parts), default=0)
            case syntax.Alternatives():
                return 1 + max(map(depth, node.options))
            case syntax.Repeat():
                return 1 + depth(node.part)

    def schema(n: int) -> Any:
        return {"properties": {chr(0x61 + i): {"type": "null"} for i in range(n)}}

    assert depth(json_schema.tree_of(schema(60))) == depth(json_schema.tree_of(schema(2)))
    assert accepts(compiled(schema(20)), '{"b":null,"e":null,"t":null}')
