"""python -m service.jobs: the worker that trains. It needs REDIS_URL, and takes all else from the same settings."""

from __future__ import annotations

import sys

from service.jobs.worker import RetrainWorker, alone_on
from service.settings import SettingsError, read_settings
from service.store.connect import connect


def main() -> int:
    try:
        settings = read_settings()
        if not settings.redis_url:
            raise SettingsError("REDIS_URL='': a worker needs one, for that is where the line is")
        if "+cluster" in settings.redis_url:
            raise SettingsError(f"REDIS_URL={settings.redis_url!r}: the queue of trainings cannot be in a cluster")
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    with alone_on(settings.device, settings.runs_dir):
        RetrainWorker(connect(settings.redis_url)).work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
