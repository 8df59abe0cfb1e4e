"""Score the items of a list by its model: each alone, its end counted, with its rank among the validation items."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model.stepper.scoring import EncodedItems, ItemScores
from model.text.items.record import Statistic
from service.errors import BadRequest
from service.inspection.score_list import score_list
from service.models.loaded_model import LoadedModel
from service.schemas import OnUnknown


def score_items(
    model: LoadedModel,
    texts: Sequence[str],
    max_chars: int,
    on_unknown: OnUnknown,
    rank_by: Statistic,
    check_client: Callable[[], None],
) -> dict[str, Any]:
    """Return the surprisal of each item, and of all together.

    An item with characters that no item of the model can have is infinitely surprising: its figures are None, its
    rank is 100, and it counts nothing in those of all.

    Args:
        model: The model of a list.
        texts: The items, as they were sent.
        max_chars: The longest that is scored.
        on_unknown: "error" refuses items with such characters.
        rank_by: What items are ranked by.
        check_client: Called now and then; what it raises ends the work.

    Raises:
        BadRequest: A text is no item, too long, or has such characters.
        QueueFull: Every slot and every place in the queue is taken.
        Draining: The engine is stopping.
        TimedOut: The engine did not read on in time.
    """
    record, vocab = model.items, model.engine.vocab
    assert record is not None
    items = [model.normalize(text) for text in texts]
    for i, item in enumerate(items):
        if not item or len(item) > max_chars:
            _check_item(f"text.{i}", item, max_chars)
    encoded = EncodedItems.of(vocab, items)
    if encoded.unknown and on_unknown == "error":
        first = min(encoded.unknown)
        _check_no_end(f"text.{first}", items[first], vocab.end)
        model.encode(f"text.{first}", items[first], on_unknown)
    packed = encoded.pack(vocab)
    scores = ItemScores.of(encoded, packed, score_list(model, packed, check_client))
    ranks = record.ranks(scores.statistic(rank_by), rank_by)
    results = [
        {"index": i, "characters": characters, **score}
        for i, (characters, score) in enumerate(zip(scores.characters.tolist(), scores.as_dicts(ranks), strict=True))
    ]
    return {"results": results, **_whole(scores)}


def _whole(scores: ItemScores) -> dict[str, Any]:
    """The losses of all items together; None where there are none."""
    is_known = np.isfinite(scores.logprob)
    characters = int(scores.characters[is_known].sum())
    nats = -math.fsum(scores.logprob[is_known].tolist())
    per_character = nats / characters if characters else None
    bits = per_character / math.log(2) if per_character is not None else None
    return {"bits_per_character": bits, "nats_per_character": per_character, "characters": characters}


def _check_item(field: str, item: str, max_chars: int) -> None:
    if len(item) > max_chars:
        raise BadRequest(field, item, f"at most {max_chars} characters", problem=f"got {len(item)} characters")
    if not item:
        raise BadRequest(field, item, "a character other than a byte order mark")


def _check_no_end(field: str, item: str, end: str) -> None:
    if end in item:
        raise BadRequest(field, item, f"one item, without {end!r}, which ends an item: send each as a text of its own")
