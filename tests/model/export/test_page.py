"""The file of an exported page; tests/e2e/page has the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from model.errors import ConfigError
from model.export.page.build import source_hash
from model.export.page.render import WASM, to_page
from model.text.vocab import Vocabulary
from tests.conftest import random_checkpoint

HOSTILE = Vocabulary(
    "".join(sorted(set("</script><script>alert(1)</script><!--&amp;\"'\\`\n\r\t\0\u2028\u2029{}$\ud800")))
)
NAME = "</title></script><script>alert(2)</script><img src=x onerror=alert(3)>{{weights}}\u2028\0"


class Elements(HTMLParser):
    """The elements of a page, with their attributes and text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self._is_open = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))
        self._is_open = True

    def handle_endtag(self, tag: str) -> None:
        self._is_open = False

    def handle_data(self, data: str) -> None:
        if self._is_open:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = (tag, attributes, text + data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.elements if name == tag]


def test_the_module_is_built_from_these_sources() -> None:
    """After a change of step.c, gates.h or sampling.h: python -m model.export.page.build (pip install ziglang)."""
    assert WASM.read_text().partition("\n")[0] == source_hash()


def test_hostile_characters_and_names_stay_data() -> None:
    """The page has the elements of the template and no other; the vocabulary and the name come out as they went in."""
    usual, hostile = (
        Elements(to_page(checkpoint, name))
        for checkpoint, name in ((random_checkpoint(), "m"), (random_checkpoint(alphabet=HOSTILE), NAME))
    )
    assert [tag for tag, _, _ in hostile.elements] == [tag for tag, _, _ in usual.elements]
    (_, data), (_, weights), (_, script) = hostile.of("script")
    assert json.loads(data)["characters"] == HOSTILE.characters
    assert "<" not in data
    assert "<" not in weights
    assert script == usual.of("script")[2][1]
    assert hostile.of("title")[0][1] == NAME.replace("\u2028", "\ufffd").replace("\0", "\ufffd")


def test_the_policy_allows_the_pages_own_code_only() -> None:
    """Script and style are named by their hashes; there is no source of anything else."""
    page = to_page(random_checkpoint(), "m")
    elements = Elements(page)
    policy = {
        name: sources
        for name, *sources in (
            part.split() for part in (elements.of("meta")[1][0]["content"] or "").split(";")
        )
    }  # fmt: skip
    (_, _, (_, script)), ((_, style),) = elements.of("script"), elements.of("style")
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (script, style)]
    assert policy == {
        "default-src": ["'none'"],
        "script-src": [hashes[0], "'wasm-unsafe-eval'"],
        "style-src": [hashes[1]],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    assert not re.search(rb"https?://", page)


def test_another_cell_is_refused() -> None:
    """The page runs an lstm."""
    with pytest.raises(ConfigError, match="format: the model's cell is gru, expected onnx or hf"):
        to_page(random_checkpoint("gru"), "m")


def test_a_file_is_a_function_of_its_model() -> None:
    """The same checkpoint gives the same bytes, and another name another title only."""
    first, again = (to_page(random_checkpoint(), "m") for _ in range(2))
    assert first == again
    assert to_page(replace(random_checkpoint(), step=99), "n") == first.replace(b">m<", b">n<")
