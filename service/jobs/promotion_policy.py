"""The promotion policy: whether a new checkpoint replaces the promoted one, and the numbers behind the decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.checkpoints import file_format, registry
from model.checkpoints.file_format import Checkpoint
from model.checkpoints.kinds import different_kinds
from model.errors import CheckpointError
from model.evaluation.item_losses import item_losses
from model.evaluation.protocols import sampled_loss
from model.evaluation.validation_sample import MAX_CHARACTERS
from model.text.corpus import Corpus, Ids
from service.jobs.record import Decision

_MAX_UNKNOWN_FRACTION = 0.01  # of the validation characters; with more unknown ones, two models are not comparable


def decide(rule: str, path: Path, corpus: Corpus, device: str) -> Decision:
    """Decide whether a new checkpoint is promoted.

    Args:
        rule: "never", "always" or "if_better": if its validation loss on this corpus is lower than the promoted one's.
        path: The new checkpoint, in the folder that the service reads.
        corpus: The corpus of the new model.
        device: Where the models are evaluated.
    """
    if rule == "never":
        return Decision(False, "promote is never")
    if rule == "always":
        return Decision(True, "promote is always")
    try:
        promoted_path = registry.promoted_path(path.parent)
        promoted = file_format.load(promoted_path) if promoted_path is not None else None
    except CheckpointError as e:
        return Decision(True, f"the promoted checkpoint cannot be used: {e}")
    if promoted is None:
        return Decision(True, "there was no model before it")
    return compare(file_format.load(path), promoted, corpus, device)


def compare(new: Checkpoint, promoted: Checkpoint, corpus: Corpus, device: str) -> Decision:
    """Compare two models on the new one's validation text, with its protocol.

    Characters that the promoted model does not know are skipped for both models. If they are more than 1% of the text,
    the models are not comparable and the promoted one stays.
    """
    protocol = new.val_protocol
    if reason := different_kinds(protocol, promoted.val_protocol):
        return Decision(False, f"{reason}; promote by hand, or retrain with promote = always")
    # (M,) the validation text in the promoted model's ids; -1 where its vocabulary lacks the character
    characters = [promoted.vocab.end if c == new.vocab.end else c for c in new.vocab.characters]
    ids = np.array([promoted.vocab.characters.find(c) for c in characters])[corpus.val]
    is_unknown = ids < 0
    n_unknown = int(is_unknown.sum())
    n_compared = min(MAX_CHARACTERS, len(ids) - n_unknown)
    if n_unknown > _MAX_UNKNOWN_FRACTION * len(ids):
        missing = "".join(sorted(set(new.vocab.characters) - set(promoted.vocab.characters)))
        return Decision(
            False,
            f"not comparable: the vocabulary of the promoted model lacks {n_unknown} of the {len(ids)} characters of "
            f"the validation text ({missing[:40]!r}); promote by hand, or retrain with promote = always",
            protocol=protocol,
            characters=n_compared,
            skipped_characters=n_unknown,
        )
    new_loss, promoted_loss = (
        _loss(model, text, device) for model, text in ((new, corpus.val[~is_unknown]), (promoted, ids[~is_unknown]))
    )
    is_better = new_loss < promoted_loss
    relation = "lower" if is_better else "not lower"
    return Decision(
        is_better,
        f"its validation loss, {new_loss:.4f}, is {relation} than the promoted model's, {promoted_loss:.4f}",
        protocol=protocol,
        characters=n_compared,
        skipped_characters=n_unknown,
        new_val_loss=new_loss,
        promoted_val_loss=promoted_loss,
        promoted_id=promoted.fingerprint,
    )


def _loss(model: Checkpoint, ids: Ids, device: str) -> float:
    network = model.network().to(device)
    if model.items is not None:
        return item_losses(network, ids, model.vocab.start, MAX_CHARACTERS).per_character
    return sampled_loss(network, ids, MAX_CHARACTERS)
