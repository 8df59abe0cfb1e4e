"""python -m service.jobs: the worker that trains. It needs REDIS_URL, and takes all else from the same settings."""

from __future__ import annotations

import argparse
import subprocess
import sys

from service.jobs.worker import RetrainWorker, alone_on, heard_of
from service.settings import Settings, SettingsError, read_settings
from service.store.connect import connect


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.jobs", description=__doc__)
    parser.add_argument(
        "--first", action="store_true", help="where there is no model, queue the training of a first one, then work"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="how long to train a first model (default 3)")
    parser.add_argument(
        "--check", action="store_true", help="only look: exit 0 when this machine's worker was heard of lately"
    )
    args = parser.parse_args()
    try:
        settings = _settings()
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    if args.check:
        return 0 if heard_of(connect(settings.redis_url)) else 1
    if args.first:  # by a process of its own: it loads torch, which a worker that forks must not
        queue = [sys.executable, "-m", "service.first", "--minutes", str(args.minutes)]
        if subprocess.run(queue).returncode:
            return 1
    with alone_on(settings.device, settings.runs_dir):
        RetrainWorker(connect(settings.redis_url)).work(logging_level="WARNING")
    return 0


def _settings() -> Settings:
    """Raised: SettingsError, also for a Redis that cannot hold the queue."""
    settings = read_settings()
    if not settings.redis_url:
        raise SettingsError("REDIS_URL='': a worker needs one, for that is where the line is")
    if "+cluster" in settings.redis_url:
        raise SettingsError(f"REDIS_URL={settings.redis_url!r}: the queue of trainings cannot be in a cluster")
    return settings


if __name__ == "__main__":
    sys.exit(main())
