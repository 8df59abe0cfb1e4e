"""Completions in the form of the protocol: the whole object, and the chunks of a stream."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from service.inspection.encoded_list import EncodedList
from service.openai.completions import Part, RunningCompletion
from service.openai.logprobs import LogprobsLists


@dataclass(slots=True)
class _Choice:
    """A text as far as it is known."""

    text: list[str] = field(default_factory=list)
    logprobs: LogprobsLists = field(default_factory=lambda: LogprobsLists(top_logprobs=EncodedList()))
    finish_reason: str | None = None
    sum_logprobs: float = 0.0
    n_generated: int = 0


class WholeCompletion:
    """Collects the parts of a completion."""

    def __init__(self, completion: RunningCompletion) -> None:
        """Start with nothing of it."""
        self._completion = completion
        self._choices: dict[int, _Choice] = defaultdict(_Choice)

    def add(self, part: Part) -> None:
        """Add a part."""
        choice = self._choices[part.index]
        choice.text.append(part.text)
        choice.finish_reason = choice.finish_reason or finish_reason(part)
        if part.items is not None:
            choice.logprobs.add(part.text, part.items)
        choice.sum_logprobs += part.sum_logprobs
        choice.n_generated += len(part.text)

    def as_dict(self) -> dict[str, Any]:
        """Return the `text_completion` object."""
        request, completion = self._completion.request, self._completion
        has_logprobs = request.logprobs is not None
        choices = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": choice.logprobs.as_dict() if has_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._best())
        ]
        return {**head(completion), "choices": choices, "usage": completion.usage()}

    def _best(self) -> list[_Choice]:
        """The n most probable of each prompt's best_of texts, by the mean log-probability of their characters."""
        choices = [self._choices[index] for index in range(self._completion.n_choices)]
        n, best_of = self._completion.request.n or 1, self._completion.request.best_of
        if best_of is None:
            return choices
        groups = [choices[start : start + best_of] for start in range(0, len(choices), best_of)]
        return [best for group in groups for best in sorted(group, key=_mean_logprob, reverse=True)[:n]]


class ChunkEncoder:
    """Makes the chunks of a stream."""

    def __init__(self, completion: RunningCompletion) -> None:
        """Start before the first part."""
        self._completion = completion
        self._offsets: dict[int, int] = defaultdict(int)
        options = completion.request.stream_options
        self.has_usage = options is not None and bool(options.include_usage)

    def chunk(self, part: Part) -> dict[str, Any]:
        """Return the chunk of a part."""
        logprobs = None
        if part.items is not None:
            lists = LogprobsLists(self._offsets[part.index])
            lists.add(part.text, part.items)
            logprobs = lists.as_dict()
        self._offsets[part.index] += len(part.text)
        choice = {
            "index": part.index,
            "text": part.text,
            "logprobs": logprobs,
            "finish_reason": finish_reason(part),
        }
        return {**head(self._completion), "choices": [choice], **({"usage": None} if self.has_usage else {})}

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of a stream that ends with the usage."""
        return {**head(self._completion), "choices": [], "usage": self._completion.usage()}


def head(completion: RunningCompletion) -> dict[str, Any]:
    """Return the fields that all chunks of a completion share."""
    return {
        "id": completion.id,
        "object": "text_completion",
        "created": completion.created,
        "model": completion.model_name,
        "system_fingerprint": completion.fingerprint,
    }


def finish_reason(part: Part) -> str | None:
    """Return the finish reason in the protocol's words: a text that ended by time or with the server is cut off."""
    if part.finish_reason is None:
        return None
    return "stop" if part.finish_reason == "stop" else "length"


def _mean_logprob(choice: _Choice) -> float:
    """The mean of its characters; a text of none, which a stop string ended at once, is worse than any."""
    return choice.sum_logprobs / choice.n_generated if choice.n_generated else -math.inf
