"""python -m service.launcher.training_progress: have a first model trained where it is needed, and show how that goes.

A process of its own: it loads torch to read checkpoints, which the launcher has no use for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model.errors import ModelError
from service.errors import ServiceError
from service.jobs.first_model import DEFAULT_MINUTES, ensure_bootstrap
from service.jobs.queue import JobQueue
from service.launcher.terminal import say
from service.operations.address import service_url
from service.operations.console import follow_job
from service.settings import Settings, SettingsError, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora


def main() -> int:
    """Queue the training, print its progress until it ends, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m service.launcher.training_progress", description=__doc__)
    parser.add_argument("corpus", type=Path, nargs="*", help="text files to train on; none: the default text")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="how long to train")
    args = parser.parse_args()
    try:
        settings = read_settings()
        queue = JobQueue(connect(settings.require_queue()), settings.max_queued_jobs)
        job_id = queue_training(settings, queue, args.corpus, args.minutes)
    except (SettingsError, ModelError, ServiceError) as error:
        print(f"error   {error}", file=sys.stderr)
        return 1
    try:
        for line in follow_job(queue, job_id) if job_id else ():
            print(line, flush=True)
    except ServiceError as error:
        say("train", f"can no longer be followed from here: {error}")
    return 0


def queue_training(settings: Settings, queue: JobQueue, corpus_files: list[Path], minutes: float) -> str | None:
    """Queue the training of a first model if one is needed.

    Args:
        settings: Where the corpora and the checkpoints are.
        queue: The job queue.
        corpus_files: The texts to train on; none: the default text.
        minutes: How long to train.

    Returns:
        The id of the job to follow, or None.
    """
    corpora = Corpora(settings.corpora_dir, settings.max_corpus_bytes)
    bootstrap = ensure_bootstrap(queue, corpora, settings.checkpoint_dir, corpus_files, minutes)
    say("model", bootstrap.model)
    jobs_url = f"{service_url(settings.host, settings.port)}/jobs"
    if bootstrap.cancelled_job_id is not None:
        say("train", f"cancelled the job that trains on another text: {jobs_url}/{bootstrap.cancelled_job_id}")
    if bootstrap.job_id is not None:
        if not bootstrap.is_new:
            queue.restore_retries(bootstrap.job_id)  # however often earlier launchers were killed in the middle of it
        what = ", ".join(map(str, corpus_files)) or "the works of Shakespeare"
        progress = (
            f"on {what}, for about {minutes:g} min" if bootstrap.is_new else "continues a job that is queued already"
        )
        say("train", f"{progress}: {jobs_url}/{bootstrap.job_id}")
    return bootstrap.job_id


if __name__ == "__main__":
    sys.exit(main())
