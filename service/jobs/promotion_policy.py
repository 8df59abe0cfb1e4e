"""Whether a new model is promoted: the rule that was asked for, the decision, and the numbers that say why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint
from model.errors import CheckpointError
from model.evaluation.protocols import sampled_loss
from model.evaluation.validation import MAX_CHARACTERS
from model.text.corpus import Corpus

_LEFT_OUT = 0.01  # of the validation text may be unknown to the promoted model, for the two to be compared


def judge(rule: str, path: Path, corpus: Corpus, device: str) -> dict[str, Any]:
    """Whether this checkpoint, in the folder of those that are served, is to be promoted.

    rule: never, always, or if_better: than the promoted one, on this corpus's validation part.
    """
    if rule == "never":
        return decision_of(False, "promote is never")
    if rule == "always":
        return decision_of(True, "promote is always")
    try:
        before = registry.promoted_path(path.parent)
        old = file_format.load(before) if before is not None else None
    except CheckpointError as e:
        return decision_of(True, f"what is promoted cannot be used: {e}")
    if old is None:
        return decision_of(True, "there was no model before it")
    return compare(file_format.load(path), old, corpus, device)


def compare(new: Checkpoint, old: Checkpoint, corpus: Corpus, device: str) -> dict[str, Any]:
    """Both models on the new one's validation text, protocol (b).

    Characters that the old model has never seen are left out for both, as long as they are few; where they are not, the
    two cannot be compared, and the old one stays.
    """
    ids = np.array([old.vocab.characters.find(c) for c in new.vocab.characters])[corpus.val]  # (M,) the old model's
    unknown = ids < 0
    n_unknown = int(unknown.sum())
    numbers = {"protocol": "b", "characters": min(MAX_CHARACTERS, len(ids) - n_unknown), "left_out": n_unknown}
    if n_unknown > _LEFT_OUT * len(ids):
        missing = "".join(sorted(set(new.vocab.characters) - set(old.vocab.characters)))
        return decision_of(
            False,
            f"not comparable: the promoted model cannot read {n_unknown} of the {len(ids)} characters of the "
            f"validation text ({missing[:40]!r}); promote by hand, or ask for promote = always",
            **numbers,
        )
    losses = [
        sampled_loss(model.network().to(device), text, MAX_CHARACTERS)
        for model, text in ((new, corpus.val[~unknown]), (old, ids[~unknown]))
    ]
    is_better = losses[0] < losses[1]
    what = "lower" if is_better else "not lower"
    return decision_of(
        is_better,
        f"its validation loss, {losses[0]:.4f}, is {what} than the promoted model's, {losses[1]:.4f}",
        new=losses[0],
        before=losses[1],
        before_id=old.fingerprint,
        **numbers,
    )


def decision_of(promoted: bool, reason: str, **numbers: Any) -> dict[str, Any]:
    return {"promoted": promoted, "reason": reason, **numbers}
