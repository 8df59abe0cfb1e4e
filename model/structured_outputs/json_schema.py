"""A JSON schema as a tree: a regular part of what the schema allows, so that everything written is valid.

Every keyword is applied or refused; none is ignored but annotations. Texts are compact JSON, with at most one space
after a comma or a colon. Objects have their declared properties, in the order of the schema, and no others. Strings
have no escapes but of the quotation mark and the backslash. Numbers have at most fifteen digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from model.errors import StructuredOutputError, short_repr
from model.structured_outputs.automaton import MAX_POSITIONS, n_positions, too_many_positions
from model.structured_outputs.syntax import (
    EMPTY,
    MAX_PATTERN_CHARS,
    Alternatives,
    Concatenation,
    Node,
    Repeat,
    choice,
    literal,
    parse,
)
from model.structured_outputs.syntax import without as without_characters

_ANNOTATIONS = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
    ]
)
_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "boolean": (),
    "null": (),
}
_SCALARS = ("string", "number", "boolean", "null")
MAX_DEPTH = 32
MAX_NODES = 5_000
MAX_NESTING = 200
"""Levels of the JSON of a schema, values of `enum` and `const` included."""
_MAX_NUMBER = 10**15 - 1
_NOT_IN_STRINGS = r'["\\\x00-\x1f\x7f-\x9f\ud800-\udfff]'
_INTEGER = "-?(?:0|[1-9][0-9]{0,14})"
_SPACE = Repeat(literal(" "), 0, 1)
_CHARACTER = parse(r'[^"\\\x00-\x1f\x7f-\x9f\ud800-\udfff]|\\["\\]')
_DATE = (
    "[0-9]{3}[1-9]-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": f"{_BYTE}(?:\\.{_BYTE}){{3}}",
}


def tree_of(schema: Any, field: str = "json") -> Node:
    """The tree of the texts that a schema describes.

    Args:
        schema: A JSON schema, as parsed JSON.
        field: Names the schema in errors.

    Raises:
        StructuredOutputError: The schema is malformed, or a keyword is not supported.
    """
    _check_json(schema, field)
    return _Reader(schema).value(schema, field)


def any_object() -> Node:
    """The tree of flat objects: any number of properties, each a string, a number, a boolean or null."""
    reader = _Reader({})
    member = Concatenation((reader.string({}, ""), literal(":"), _SPACE, reader.anything("")))
    return _enclosed("{", [Repeat(_list(member, 1, None), 0, 1)], "}")


class _Reader:
    """Reads one schema and what it refers to.

    It counts what it builds. A schema whose tree is too large is refused while it is read, before it takes memory.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._n_nodes = 0
        self._n_built = 0  # characters, classes and parts of objects
        self._n_pattern_chars = 0
        self._references: list[str] = []  # that are being read

    def _count(self, n: int, field: str) -> None:
        self._n_built += n
        if self._n_built > MAX_POSITIONS:
            raise too_many_positions(field)

    def _counted(self, node: Node, field: str) -> Node:
        self._count(n_positions(node, field), field)
        return node

    def value(self, schema: Any, field: str, depth: int = 0) -> Node:
        self._n_nodes += 1
        if depth > MAX_DEPTH or self._n_nodes > MAX_NODES:
            expected = f"at most {MAX_DEPTH} levels and {MAX_NODES} schemas, references counted"
            raise StructuredOutputError("is too large", field=field, expected=expected)
        if schema is True:
            return self.anything(field)
        if not isinstance(schema, Mapping):
            raise _unexpected(field, schema, "a JSON schema: an object, or true")
        for keyword, read in (("$ref", self._reference), ("const", self._const), ("enum", self._enum)):
            if keyword in schema:
                # what stands beside these keywords would have to hold as well
                beside = ("type",) if keyword != "$ref" else ()
                _only(schema, field, (keyword, *beside))
                return read(schema, field, depth)
        if "anyOf" in schema:
            _only(schema, field, ("anyOf",))
            options = schema["anyOf"]
            if not isinstance(options, Sequence) or isinstance(options, str) or not options:
                raise _unexpected(f"{field}.anyOf", options, "a list of schemas")
            return Alternatives(tuple(self.value(o, f"{field}.anyOf.{i}", depth + 1) for i, o in enumerate(options)))
        if "allOf" in schema and isinstance(schema["allOf"], Sequence) and len(schema["allOf"]) == 1:
            _only(schema, field, ("allOf",))
            return self.value(schema["allOf"][0], f"{field}.allOf.0", depth + 1)
        types = _types(schema, field)
        _only(schema, field, ("type", *(keyword for name in types for keyword in _KEYWORDS[name])))
        readers: dict[str, Callable[[Mapping[str, Any], str, int], Node]] = {
            "object": self._object,
            "array": self._array,
            "string": lambda s, f, _: self.string(s, f),
            "integer": lambda s, f, _: self._counted(_integer(s, f), f),
            "number": lambda s, f, _: self._counted(_number(s, f), f),
            "boolean": lambda _, f, __: self._counted(choice(["true", "false"]), f),
            "null": lambda _, f, __: self._counted(literal("null"), f),
        }
        return Alternatives(tuple(readers[name](schema, field, depth) for name in types))

    def anything(self, field: str) -> Node:
        """A value that is no object and no array."""
        return self.value({"type": list(_SCALARS)}, field)

    def string(self, schema: Mapping[str, Any], field: str) -> Node:
        """A string; its pattern and its format must match wholly."""
        if "pattern" not in schema and "format" not in schema:
            low, high = _bounds(schema, field, "minLength", "maxLength")
            self._count(1, field)
            return _enclosed('"', [Repeat(_CHARACTER, low, high)], '"')
        keyword = "pattern" if "pattern" in schema else "format"
        _only(schema, field, [k for k in schema if k not in _KEYWORDS["string"] or k == keyword])
        at, value = f"{field}.{keyword}", schema[keyword]
        if not isinstance(value, str) or (keyword == "format" and value not in _FORMATS):
            expected = "a string" if keyword == "pattern" else f"one of {', '.join(_FORMATS)}"
            raise _unexpected(at, value, expected)
        self._n_pattern_chars += len(value) if keyword == "pattern" else 0
        if self._n_pattern_chars > MAX_PATTERN_CHARS:
            expected = f"at most {MAX_PATTERN_CHARS} characters in all patterns, references counted"
            raise StructuredOutputError("is too large", field=at, value=value, expected=expected)
        tree = parse(value if keyword == "pattern" else _FORMATS[value], at)
        self._count(n_positions(tree, at), at)
        return _enclosed('"', [without_characters(tree, _NOT_IN_STRINGS)], '"')

    def _reference(self, schema: Mapping[str, Any], field: str, depth: int) -> Node:
        reference, at = schema["$ref"], f"{field}.$ref"
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise _unexpected(at, reference, "a reference within the schema, such as #/$defs/name")
        if reference in self._references:
            raise _unexpected(at, reference, "a schema that does not contain itself")
        target = self._root
        for part in reference[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise _unexpected(at, reference, "a reference to a part of the schema")
            target = target[name]
        self._references.append(reference)
        node = self.value(target, at, depth + 1)
        self._references.pop()
        return node

    def _const(self, schema: Mapping[str, Any], field: str, depth: int) -> Node:
        return self._enum({**schema, "enum": [schema["const"]]}, field, depth)

    def _enum(self, schema: Mapping[str, Any], field: str, depth: int) -> Node:
        values = schema["enum"]
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            raise _unexpected(f"{field}.enum", values, "a list of values")
        names = _types(schema, field) if "type" in schema else tuple(_KEYWORDS)
        values = [value for value in values if any(_has_type(value, name) for name in names)]
        if not values:
            raise _unexpected(f"{field}.enum", schema["enum"], f"a value of type {' or '.join(names)}")
        self._count(len(schema["enum"]) - len(values), field)
        texts = []
        for value in values:
            texts.append(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
            self._count(len(texts[-1]), field)
        return choice(texts)

    def _object(self, schema: Mapping[str, Any], field: str, depth: int) -> Node:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping):
            raise _unexpected(f"{field}.properties", properties, "an object")
        if not isinstance(required, Sequence) or isinstance(required, str):
            raise _unexpected(f"{field}.required", required, "a list of names")
        for name in required:
            if not isinstance(name, str) or name not in properties:
                raise _unexpected(f"{field}.required", name, f"names in {field}.properties")
        is_required = frozenset(required)
        if len(is_required) < len(required):
            raise _unexpected(f"{field}.required", required, "different names")
        members = list[tuple[Node, bool]]()
        for name, inner in properties.items():
            if inner is False and name not in is_required:
                self._count(1, field)
                continue
            value = self.value(inner, f"{field}.properties.{name}", depth + 1)
            text = json.dumps(name, ensure_ascii=False) + ":"
            self._count(len(text), field)
            members.append((Concatenation((literal(text), _SPACE, value)), name in is_required))
        self._count(_n_groups([required for _, required in members]), field)
        return _enclosed("{", [_members(members)], "}")

    def _array(self, schema: Mapping[str, Any], field: str, depth: int) -> Node:
        low, high = _bounds(schema, field, "minItems", "maxItems")
        self._count(1, field)
        item = self.value(schema.get("items", True), f"{field}.items", depth + 1)
        return _enclosed("[", [_list(item, low, high)], "]")


def _enclosed(left: str, parts: Sequence[Node], right: str) -> Node:
    return Concatenation((literal(left), *parts, literal(right)))


def _separator() -> Node:
    return Concatenation((literal(","), _SPACE))


def _list(item: Node, low: int, high: int | None) -> Node:
    """So many items, with separators between them."""
    if high == 0:
        return EMPTY
    more = Repeat(Concatenation((_separator(), item)), max(low - 1, 0), None if high is None else high - 1)
    items = Concatenation((item, more))
    return items if low else Repeat(items, 0, 1)


def _n_groups(is_required: Sequence[bool]) -> int:
    """The number of members that `_members` writes, each where it can begin the object or follow another one."""
    n = len(is_required)
    n_beginnings = is_required.index(True) + 1 if True in is_required else n
    return sum(n - at for at in range(n_beginnings))


def _members(members: list[tuple[Node, bool]]) -> Node:
    """The members of an object in order, without those that are not required in any combination.

    One alternative for each member that can be the first one that is written.
    """
    beginnings = list[Node]()
    for at in range(len(members)):
        rest: list[Node] = []
        for node, is_required in members[at + 1 :]:
            following = Concatenation((_separator(), node))
            rest.append(following if is_required else Repeat(following, 0, 1))
        beginnings.append(Concatenation((members[at][0], *rest)))
        if members[at][1]:
            return Alternatives(tuple(beginnings))
    return Alternatives((*beginnings, EMPTY))


def _check_json(schema: Any, field: str) -> None:
    """Check what holds everywhere in a schema, also where it is only a value.

    Raises:
        StructuredOutputError: It is nested too deep, or has a number that JSON does not have.
    """
    values: list[tuple[Any, str, int]] = [(schema, field, 0)]
    while values:
        value, at, depth = values.pop()
        if depth > MAX_NESTING:
            raise StructuredOutputError("is too large", field=field, expected=f"at most {MAX_NESTING} levels of JSON")
        if isinstance(value, float) and not math.isfinite(value):
            raise _unexpected(at, str(value), "a finite number")
        if isinstance(value, Mapping):
            values += [(inner, f"{at}.{name}", depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            values += [(inner, f"{at}.{i}", depth + 1) for i, inner in enumerate(value)]


def _types(schema: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """The types that a schema allows; where it names none, those of its keywords, or all scalar ones."""
    declared = schema.get("type")
    if declared is None:
        named = [
            name for name, keywords in _KEYWORDS.items() if name != "integer" and any(k in schema for k in keywords)
        ]
        return tuple(named) or _SCALARS
    types = [declared] if isinstance(declared, str) else declared
    is_list = isinstance(types, Sequence) and 1 <= len(types) <= len(_KEYWORDS)
    if not is_list or any(not isinstance(t, str) or t not in _KEYWORDS for t in types):
        raise _unexpected(f"{field}.type", declared, f"one or several of {', '.join(_KEYWORDS)}")
    return tuple(types)


def _has_type(value: Any, name: str) -> bool:
    """Whether a JSON value has a type."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "object": Mapping,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    is_boolean = isinstance(value, bool)
    return isinstance(value, kinds[name]) and (name == "boolean" or not is_boolean)


def _only(schema: Mapping[str, Any], field: str, keywords: Sequence[str]) -> None:
    """Refuse keywords that are neither annotations nor among these."""
    for keyword in schema:
        if keyword not in _ANNOTATIONS and keyword not in keywords:
            beside = ", ".join(k for k in keywords if k in schema)
            supported = ", ".join(dict.fromkeys(k for ks in _KEYWORDS.values() for k in ks))
            problem = f"is not supported here{f' beside {beside}' if beside else ''}"
            expected = f"keywords that apply to the type, of type, enum, const, anyOf, $ref, {supported}"
            raise StructuredOutputError(problem, field=f"{field}.{keyword}", value=schema[keyword], expected=expected)


def _bounds(schema: Mapping[str, Any], field: str, low_name: str, high_name: str) -> tuple[int, int | None]:
    """Two keywords that count."""
    low, high = schema.get(low_name, 0), schema.get(high_name)
    for name, value in ((low_name, low), (high_name, high)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise _unexpected(f"{field}.{name}", value, "an integer of 0 or more")
    if high is not None and high < low:
        raise _unexpected(f"{field}.{high_name}", high, f"at least {low_name}, which is {low}")
    return low, high


def _range(schema: Mapping[str, Any], field: str, *, allow_exclusive: bool) -> tuple[int, int]:
    """The least and the greatest integer that a schema of a number allows."""
    least, greatest = -_MAX_NUMBER, _MAX_NUMBER
    for name in _KEYWORDS["number"]:
        value = schema.get(name)
        if value is None:
            continue
        at = f"{field}.{name}"
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        if not is_number or abs(value) > _MAX_NUMBER:
            raise _unexpected(at, value, f"an integer from -{_MAX_NUMBER} to {_MAX_NUMBER}")
        if name.startswith("exclusive") and not allow_exclusive:
            raise _unexpected(at, value, "minimum and maximum for numbers that are no integers")
        shift = {"exclusiveMinimum": 1, "exclusiveMaximum": -1}.get(name, 0)
        if name.endswith("inimum"):
            least = max(least, int(value) + shift)
        else:
            greatest = min(greatest, int(value) + shift)
    if least > greatest:
        raise _unexpected(field, dict(schema), "a range with a number in it", "its range of numbers is empty")
    return least, greatest


def _integer(schema: Mapping[str, Any], field: str) -> Node:
    if not any(name in schema for name in _KEYWORDS["integer"]):
        return parse(_INTEGER)
    least, greatest = _range(schema, field, allow_exclusive=True)
    options = []
    if greatest >= 0:
        options.append(_digits(max(least, 0), greatest))
    if least < 0:
        options.append(Concatenation((literal("-"), _digits(max(-greatest, 1), -least))))
    return Alternatives(tuple(options))


def _number(schema: Mapping[str, Any], field: str) -> Node:
    """A number: digits, and perhaps a fraction. Beyond its greatest integer part only zeros follow."""
    if not any(name in schema for name in _KEYWORDS["number"]):
        return parse(_INTEGER + r"(?:\.[0-9]{1,15})?")
    least, greatest = _range(schema, field, allow_exclusive=False)
    options: list[Node] = []
    for sign, low, high in (("", max(least, 0), greatest), ("-", max(-greatest, 0), -least)):
        if high < 0:
            continue
        fraction = Repeat(parse(r"\.[0-9]{1,15}"), 0, 1)
        if high > low:
            options.append(Concatenation((literal(sign), _digits(low, high - 1), fraction)))
        options.append(Concatenation((literal(f"{sign}{high}"), Repeat(parse(r"\.0{1,15}"), 0, 1))))
    return Alternatives(tuple(options))


def _digits(low: int, high: int) -> Node:
    """The decimal integers from low to high, both 0 or more, without leading zeros."""
    options, start = [], low
    while start <= high:
        end = min(high, 10 ** len(str(start)) - 1)
        options.append(_equal_length(str(start), str(end)))
        start = end + 1
    return parse("|".join(options))


def _equal_length(low: str, high: str) -> str:
    """The integers from low to high, which have equally many digits, as an expression."""
    if low == high:
        return low
    if low[0] == high[0]:
        return f"{low[0]}(?:{_equal_length(low[1:], high[1:])})"
    rest = len(low) - 1
    if not rest:
        return f"[{low}-{high}]"
    options, first, last = [], int(low[0]), int(high[0])
    if low[1:] != "0" * rest:
        options.append(f"{first}(?:{_equal_length(low[1:], '9' * rest)})")
        first += 1
    tail = None
    if high[1:] != "9" * rest:
        tail = f"{last}(?:{_equal_length('0' * rest, high[1:])})"
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return "|".join([*options, *([tail] if tail else [])])


def _unexpected(field: str, value: Any, expected: str, problem: str = "") -> StructuredOutputError:
    problem = problem or f"got {short_repr(value)}"
    return StructuredOutputError(problem, field=field, value=value, expected=expected)
