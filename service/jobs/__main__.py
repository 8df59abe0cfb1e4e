"""The worker process that trains: python -m service.jobs.

It needs a Redis and takes its other settings from the service's environment variables.
"""

from __future__ import annotations

import subprocess
import sys

from model.arguments import MINUTES, ArgumentParser, setting
from model.errors import ModelError
from service.errors import ServiceError
from service.jobs.queue import JobQueue
from service.jobs.worker import RetrainWorker, device_lock, worker_alive
from service.settings import Settings, SettingsError, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.redis_server import require_usable


def main() -> int:
    """Parse the command line and run the worker; return the exit status."""
    args = parser().parse_args()
    try:
        settings = read_settings()
        url = settings.require_queue()
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    if args.healthcheck:
        return 0 if worker_alive(connect(url)) else 1
    if args.bootstrap_only:
        return _bootstrap(settings, args.minutes)
    if args.bootstrap:  # in a process of its own: it loads torch, and a worker that forks must not
        command = [sys.executable, "-m", "service.jobs", "--bootstrap-only", "--minutes", str(args.minutes)]
        if subprocess.run(command, check=False).returncode:
            return 1
    try:
        require_usable("JOBS_REDIS_URL" if settings.jobs_redis_url else "REDIS_URL", url)
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    with device_lock(settings.device, settings.runs_dir):
        RetrainWorker(connect(url, breaker=False), settings.runs_dir).work(logging_level="WARNING")
    return 0


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    result = ArgumentParser(prog="python -m service.jobs", description=__doc__)
    what = result.add_mutually_exclusive_group()
    what.add_argument(
        "--bootstrap", action="store_true", help="first queue a bootstrap job if no model is promoted, then work"
    )
    what.add_argument(
        "--bootstrap-only", action="store_true", help="queue a bootstrap job if no model is promoted, and exit"
    )
    what.add_argument(
        "--healthcheck", action="store_true", help="exit 0 if a worker of this machine sent a heartbeat lately, else 1"
    )
    result.add_argument(
        "--minutes", type=setting(MINUTES), default=3.0, help="how long a bootstrap job trains (default 3)"
    )
    return result


def _bootstrap(settings: Settings, minutes: float) -> int:
    from service.jobs.first_model import ensure_bootstrap  # loads torch, which the worker must not

    try:
        queue = JobQueue(connect(settings.require_queue()), settings.max_queued_jobs)
        corpora = Corpora(settings.corpora_dir, settings.max_corpus_bytes)
        bootstrap = ensure_bootstrap(queue, corpora, settings.checkpoint_dir, [], minutes)
        print(f"model   {bootstrap.model}", flush=True)
        if bootstrap.job_id is not None:
            print(f"train   {'queued' if bootstrap.is_new else 'queued already'}: /jobs/{bootstrap.job_id}", flush=True)
    except (SettingsError, ModelError, ServiceError) as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
