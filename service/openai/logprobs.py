"""Log-probabilities in the form of the protocol: four lists, with an item for each character."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from service.inspection.encoded_list import EncodedList

UNKNOWN: dict[str, Any] = {}
"""The item of a text's first character, whose log-probability the protocol leaves out."""


@dataclass(slots=True)
class LogprobsLists:
    """Collects them for one chunk of a stream, or for a whole text."""

    offset: int = 0  # of the next character, in the text of the choice
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] | EncodedList = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, text: str, items: list[dict[str, Any]]) -> None:
        """Append characters.

        Args:
            text: The characters.
            items: What service.inspection.token_logprobs computed for each, or UNKNOWN.
        """
        top: list[dict[str, float] | None] = []
        for character, item in zip(text, items, strict=True):
            logprob = item.get("logprob")
            self.tokens.append(character)
            self.token_logprobs.append(logprob)
            if logprob is None:
                top.append(None)
            else:  # the character itself is always among them, with the same value as above
                alternatives = {other: value for other, value, _ in item.get("top", ())}
                top.append({**alternatives, character: logprob})
            self.text_offset.append(self.offset)
            self.offset += 1
        self.top_logprobs.extend(top)

    def as_dict(self) -> dict[str, Any]:
        """Return the four lists."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
