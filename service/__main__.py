"""python -m service: everything on this machine, stage after stage, each saying what it does.

Redis (an embedded one unless REDIS_URL is set), the worker that trains, gunicorn; a first model's training is queued if
there is none, and the service is up meanwhile. All of them end with this process, and this process with gunicorn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from model.data_folder import data_folder
from model.errors import ModelError
from service.errors import ServiceError
from service.jobs.bootstrap import needs_bootstrap, submit_bootstrap
from service.jobs.queue import JobQueue
from service.operations.console import follow_job
from service.settings import Settings, SettingsError, describe, read_settings
from service.store.connect import connect
from service.store.corpora import Corpora
from service.store.redis_server import find_server_program, require_supported_version

_WORKER_AGAIN_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description=__doc__,
        epilog=f"settings, from the environment:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--corpus", type=Path, help="the text that the model is to be trained on (default: Shakespeare)"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="how long to train a first model (default 3)")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background has it ignored
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was started below is stopped on the way out
    try:
        settings = read_settings()
        with _redis(settings.redis_url) as url:
            os.environ["REDIS_URL"] = url
            for address in {url, read_settings().require_queue()}:
                require_supported_version(connect(address))
            queue = JobQueue(connect(read_settings().require_queue()), settings.max_queued_jobs)
            with _child("service.jobs") as worker, _child(*_GUNICORN) as gunicorn:
                print(f"serve   http://{settings.host}:{settings.port}", flush=True)
                _first_model(settings, queue, args.corpus, args.minutes)
                return _supervise(gunicorn, worker)
    except (SettingsError, ModelError, ServiceError) as e:
        print(f"error   {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


_GUNICORN = ("gunicorn", "-c", "python:service.server.gunicorn_config", "service.app:create_app()")


def _first_model(settings: Settings, queue: JobQueue, corpus: Path | None, minutes: float) -> None:
    """Queue the training of a first model if one is needed, and show how it goes."""
    needed, why = needs_bootstrap(settings.checkpoint_dir, corpus)
    print(f"model   {why}", flush=True)
    if not needed:
        return
    corpora = Corpora(settings.corpora_dir, settings.max_corpus_bytes)
    job_id, is_new = submit_bootstrap(queue, corpora, corpus, minutes)
    where = f"http://{settings.host}:{settings.port}/jobs/{job_id}"
    whose = f"on {corpus or 'the works of Shakespeare'}, for about {minutes:g} min" if is_new else "queued already"
    print(f"train   {whose}: {where}", flush=True)
    threading.Thread(target=_show, args=(queue, job_id), daemon=True).start()


def _show(queue: JobQueue, job_id: str) -> None:
    try:
        for line in follow_job(queue, job_id):
            print(line, flush=True)
    except ServiceError as e:
        print(f"train   can no longer be followed from here: {e}", flush=True)


@contextmanager
def _redis(url: str) -> Iterator[str]:
    """The Redis to use: the one that was named, or a real one of our own that ends with us and keeps its data."""
    if url:
        print("redis   as REDIS_URL says", flush=True)
        yield url
        return
    data = (data_folder() / "redis").resolve()
    data.mkdir(parents=True, exist_ok=True)
    sockets = Path(tempfile.mkdtemp(prefix="longhand-"))  # not in data/: a socket's path has at most 107 bytes
    command = [find_server_program(), "--port", "0", "--unixsocket", f"{sockets}/redis.sock"]
    command += [
        "--unixsocketperm",
        "700",
        "--dir",
        str(data),
        "--appendonly",
        "yes",
        "--loglevel",
        "warning",
        "--logfile",
        "redis.log",
    ]
    command += ["--maxmemory", "1gb", "--maxmemory-policy", "volatile-ttl"]
    server = subprocess.Popen(command, start_new_session=True)  # Ctrl-C is for gunicorn first
    try:
        deadline = time.monotonic() + 30
        while not (sockets / "redis.sock").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise ModelError("the embedded Redis did not start; set REDIS_URL to use another")
            time.sleep(0.02)
        print(f"redis   embedded, data in {data}", flush=True)
        yield f"unix://{sockets}/redis.sock"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(sockets, ignore_errors=True)


class _Child:
    """A Python module that runs beside this process, in a session of its own: Ctrl-C is for this process to pass on."""

    def __init__(self, module: str, *args: str) -> None:
        self._command = [sys.executable, "-m", module, *args]
        self.process = subprocess.Popen(self._command, start_new_session=True)

    def again(self) -> None:
        self.process = subprocess.Popen(self._command, start_new_session=True)

    def stop(self) -> int:
        """Ask it to end, and wait until it has."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait()


@contextmanager
def _child(module: str, *args: str) -> Iterator[_Child]:
    child = _Child(module, *args)
    try:
        yield child
    finally:
        child.stop()


def _supervise(gunicorn: _Child, worker: _Child) -> int:
    """Until gunicorn ends: its exit status. A worker that ends is started again; its job is tried again."""
    while True:
        try:
            return gunicorn.process.wait(timeout=_WORKER_AGAIN_S)
        except subprocess.TimeoutExpired:
            if worker.process.poll() is not None:
                print(f"worker  ended (status {worker.process.returncode}); starting another", flush=True)
                worker.again()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
