"""python -m service.jobs: the worker that trains. It needs a Redis, and takes all else from the service's settings."""

from __future__ import annotations

import argparse
import subprocess
import sys

from service.jobs.worker import RetrainWorker, device_lock, worker_alive
from service.settings import SettingsError, read_settings
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
        settings = read_settings()
        url = settings.require_queue()
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    if args.check:
        return 0 if worker_alive(connect(url)) else 1
    if args.first:  # by a process of its own: it loads torch, which a worker that forks must not
        queue = [sys.executable, "-m", "service.jobs.bootstrap", "--minutes", str(args.minutes)]
        if subprocess.run(queue).returncode:
            return 1
    with device_lock(settings.device, settings.runs_dir):
        RetrainWorker(connect(url)).work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
