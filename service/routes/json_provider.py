"""JSON answers. A large one is encoded in parts, so that no other request waits for all of it.

The encoder of the standard library is one call in C, during which no other thread of the process runs Python: an answer
with the log-probabilities of 20,000 characters takes it a tenth of a second, and every other request waits as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from flask.json.provider import DefaultJSONProvider

from service.inspection.encoded_list import EncodedList

_PART = 256
"""Elements of a list that are encoded in one call."""


class JsonProvider(DefaultJSONProvider):
    """JSON with text as it is, not escaped, and with fields in the order in which they were written."""

    ensure_ascii = False
    sort_keys = False

    def dumps(self, obj: Any, **kwargs: Any) -> str:
        """Return what json.dumps returns; large lists are encoded in parts, but with indentation."""
        if kwargs.get("indent") is not None or not _is_large(obj):
            return super().dumps(obj, **kwargs)
        options = {"default": self.default, "ensure_ascii": self.ensure_ascii, "sort_keys": self.sort_keys, **kwargs}
        encoder = json.JSONEncoder(**options)
        return "".join(_parts(obj, encoder.encode, encoder.item_separator, encoder.key_separator))


def _is_large(value: Any) -> bool:
    """Whether a list of more than a part is in it, or one that is encoded already."""
    if isinstance(value, dict):
        return any(_is_large(v) for v in value.values() if isinstance(v, dict | list | EncodedList))
    if isinstance(value, list):
        return len(value) > _PART or any(_is_large(v) for v in value if isinstance(v, dict | list | EncodedList))
    return isinstance(value, EncodedList)


def _parts(value: Any, encode: Callable[[Any], str], comma: str, colon: str) -> Iterator[str]:
    if not _is_large(value):
        yield encode(value)
    elif isinstance(value, EncodedList):
        yield value.json()
    elif isinstance(value, dict):
        for i, (key, v) in enumerate(value.items()):
            yield f"{comma if i else '{'}{encode(str(key))}{colon}"
            yield from _parts(v, encode, comma, colon)
        yield "}"
    else:
        for start in range(0, len(value), _PART):
            yield comma if start else "["
            part = value[start : start + _PART]
            if _is_large(part):
                for i, v in enumerate(part):
                    yield comma if i else ""
                    yield from _parts(v, encode, comma, colon)
            else:
                yield encode(part)[1:-1]
        yield "]"
