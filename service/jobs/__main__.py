"""python -m service.jobs: the worker that trains. It needs a Redis, and takes all else from the service's settings."""

from __future__ import annotations

import sys

from service.jobs.worker import RetrainWorker, alone_on
from service.settings import SettingsError, read_settings
from service.store.connect import connect


def main() -> int:
    try:
        settings = read_settings()
        url = settings.require_queue()
    except SettingsError as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    with alone_on(settings.device, settings.runs_dir):
        RetrainWorker(connect(url)).work(logging_level="WARNING")
    return 0


if __name__ == "__main__":
    sys.exit(main())
