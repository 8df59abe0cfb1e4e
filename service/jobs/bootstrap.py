"""The bootstrap job: whether a first model must be trained, and on which corpus."""

from __future__ import annotations

import re
from pathlib import Path

from model.checkpoints import file_format, registry
from model.errors import CheckpointError
from model.text.decoding import read_text
from model.text.text_statistics import text_sha256
from service.jobs.queue import JobQueue
from service.jobs.request import validate
from service.schemas import RetrainRequest
from service.store.corpora import BUILT_IN, Corpora

DEFAULT_MINUTES = 3.0


def needs_bootstrap(checkpoint_dir: Path, corpus_file: Path | None) -> tuple[bool, str]:
    """Tell whether a first model must be trained: none is promoted, or the promoted one is of another corpus.

    Args:
        checkpoint_dir: The folder that the service reads.
        corpus_file: The corpus that the model must be of; None accepts any.

    Returns:
        Whether it must, and why; if not, the path of the promoted checkpoint.

    Raises:
        TextError: The corpus file cannot be read.
    """
    try:
        path = registry.promoted_path(checkpoint_dir)
        if path is None:
            return True, "none yet"
        info = file_format.read_info(path)
    except CheckpointError as e:
        return True, f"the promoted checkpoint cannot be used: {e}"
    if corpus_file is not None and text_sha256(read_text(corpus_file)[0]) != info.run["corpus_sha256"]:
        return True, f"{path.name} was trained on another text than {corpus_file}"
    return False, str(path)


def submit_bootstrap(queue: JobQueue, corpora: Corpora, corpus_file: Path | None, minutes: float) -> tuple[str, bool]:
    """Store the corpus and queue the bootstrap job, unless one is queued or running.

    Args:
        queue: The job queue.
        corpora: Where the corpus is stored under its file name.
        corpus_file: The corpus; None takes the built-in one.
        minutes: How long to train.

    Returns:
        The job's id, and whether this call queued it.

    Raises:
        TextError: The corpus file cannot be read.
        BadRequest: It cannot be trained on.
        JobQueueFull: As many jobs as allowed are queued.
        StoreUnavailable: Redis does not answer.
    """
    name = BUILT_IN
    if corpus_file is not None:
        read_text(corpus_file)
        name = _corpus_name(corpus_file)
        with open(corpus_file, "rb") as f:
            corpora.put(name, f.read)
    request = RetrainRequest.model_validate({"corpus": name, "promote": "always", "minutes": minutes})
    return queue.submit_bootstrap(validate(request, corpora).as_dict())


def _corpus_name(file: Path) -> str:
    """Make a corpus name from a file name."""
    name = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")[:64] or "text"
    return f"{name}-text"[:64] if name == BUILT_IN else name
