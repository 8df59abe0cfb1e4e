"""Models of a list and models of a text: the losses of the two kinds cannot be compared, so none replaces the other."""

from __future__ import annotations

from pathlib import Path

from model.checkpoints import file_format, registry
from model.config import EvaluationProtocol
from model.errors import CheckpointError


def different_kinds(new: EvaluationProtocol, promoted: EvaluationProtocol) -> str:
    """Return in words why two models are not comparable; empty if both are of a list, or both of a text.

    Args:
        new: The protocol of the new model's validation loss.
        promoted: That of the promoted one.
    """
    if new == promoted:
        return ""
    kinds = ("a list", "a text") if new == "items" else ("a text", "a list")
    return f"not comparable: the new model is of {kinds[0]} and the promoted one of {kinds[1]}"


def differs_from_promoted(new: EvaluationProtocol, folder: Path) -> str:
    """Return why a new model may not replace the promoted one of a folder by itself; empty if it may.

    It may where nothing is promoted, or what is promoted cannot be read.
    """
    try:
        path = registry.promoted_path(folder)
        return "" if path is None else different_kinds(new, file_format.read_info(path).val_protocol)
    except CheckpointError:
        return ""
