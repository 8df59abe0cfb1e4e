"""The bootstrap job: whether a first model must be trained, and on which corpus.

The last start decides. It trains the texts that it names: a bootstrap job that is queued or running with other texts is
cancelled. A start that names none accepts any model and any bootstrap job.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.checkpoints import file_format, registry
from model.errors import CheckpointError, TextError
from model.text.memory_map import text_files_sha256
from service.errors import BadRequest, JobHasEnded, UnknownCorpus
from service.jobs.queue import JobQueue
from service.jobs.record import Job
from service.jobs.request import validate
from service.schemas import RetrainRequest
from service.store.corpora import BUILT_IN, Corpora

DEFAULT_MINUTES = 3.0
_NAME_CHARS = 64


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What a start finds and does.

    Attributes:
        model: The path of the promoted checkpoint, or why a model must be trained.
        job_id: The bootstrap job that is queued or running, if there is one.
        is_new: Whether this start queued it.
        cancelled_job_id: The bootstrap job of other texts that this start cancelled, if there was one.
    """

    model: str
    job_id: str | None = None
    is_new: bool = False
    cancelled_job_id: str | None = None


def ensure_bootstrap(
    queue: JobQueue, corpora: Corpora, checkpoint_dir: Path, corpus_files: Sequence[Path], minutes: float
) -> Bootstrap:
    """Have a first model trained, if that is necessary and not going on already.

    Args:
        queue: The job queue.
        corpora: Where the texts are stored under their file names.
        checkpoint_dir: The folder that the service reads.
        corpus_files: The texts that the model must be of; none accepts any model, and trains on the default text.
        minutes: How long to train.

    Raises:
        TextError: A text cannot be read.
        BadRequest: The texts cannot be trained on.
        JobQueueFull: As many jobs as allowed are queued.
        StoreUnavailable: Redis does not answer.
    """
    is_needed, model = needs_bootstrap(checkpoint_dir, corpus_files)
    live_job_id, cancelled_job_id = queue.bootstrap_job_id(), None
    if live_job_id is not None:
        if not corpus_files or _trains_on(queue.get(live_job_id), corpora, corpus_files):
            return Bootstrap(model, live_job_id)
        with contextlib.suppress(JobHasEnded):
            queue.cancel(live_job_id)
            cancelled_job_id = live_job_id
    if not is_needed:
        return Bootstrap(model, cancelled_job_id=cancelled_job_id)
    names = _store(corpora, corpus_files) or [BUILT_IN]
    request = RetrainRequest.model_validate(
        {"corpus": names if len(names) > 1 else names[0], "promote": "always", "minutes": minutes}
    )
    job_id, is_new = queue.submit_bootstrap(validate(request, corpora, checkpoint_dir).as_dict())
    return Bootstrap(model, job_id, is_new, cancelled_job_id)


def needs_bootstrap(checkpoint_dir: Path, corpus_files: Sequence[Path]) -> tuple[bool, str]:
    """Tell whether a first model must be trained: none is promoted, or the promoted one is of other texts.

    Args:
        checkpoint_dir: The folder that the service reads.
        corpus_files: The texts that the model must be of; none accepts any.

    Returns:
        Whether it must, and why; if not, the path of the promoted checkpoint.

    Raises:
        TextError: A text cannot be read.
    """
    sha256 = text_files_sha256(corpus_files) if corpus_files else ""
    try:
        path = registry.promoted_path(checkpoint_dir)
        if path is None:
            return True, "none yet"
        info = file_format.read_info(path)
    except CheckpointError as e:
        return True, f"the promoted checkpoint cannot be used: {e}"
    if sha256 and sha256 != info.run["corpus_sha256"]:
        return True, f"{path.name} was trained on another text than {', '.join(map(str, corpus_files))}"
    return False, str(path)


def _trains_on(job: Job, corpora: Corpora, files: Sequence[Path]) -> bool:
    """Tell whether a job's corpora have the same texts as the files."""
    names = job.record.request["corpus"]
    try:
        trained = [corpora.get(name).sha256 for name in ([names] if isinstance(names, str) else names)]
    except (UnknownCorpus, BadRequest, TextError):
        return False  # it cannot be trained any more
    return trained == [text_files_sha256([file]) for file in files]


def _store(corpora: Corpora, files: Sequence[Path]) -> list[str]:
    """Store texts as corpora, and return their names."""
    names: list[str] = []
    for file in files:
        names.append(_corpus_name(file, names))
        with open(file, "rb") as f:
            corpora.put(names[-1], f.read)
    return names


def _corpus_name(file: Path, taken: Sequence[str]) -> str:
    """Make a corpus name from a file name, other than those that are taken."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._")[:_NAME_CHARS] or "text"
    name, number = stem, 1
    while name in (*taken, BUILT_IN):
        number += 1
        name = f"{stem[: _NAME_CHARS - 1 - len(str(number))]}-{number}"
    return name
