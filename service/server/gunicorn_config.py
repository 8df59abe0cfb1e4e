"""How gunicorn runs the service. Every value comes from service.settings."""

import math
import resource
import signal
from typing import Any

from service.operations import metrics
from service.settings import read_settings

_settings = read_settings()

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "service.server.worker.BufferedThreadWorker"
# A stream holds its thread, and so does a place in the line; the rest is for refusals, sessions and health checks.
threads = _settings.slots + _settings.max_waiting + 16
# Slow and idle clients hold a connection and no thread. Each connection is a file descriptor: take what may be had.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = min(_hard, 65536) if _hard != resource.RLIM_INFINITY else 65536
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, _files), _hard))
worker_connections = max(threads + 16, min(4096, _files // 2))
# Longer than usual proxies keep a connection to us (nginx and ALB 60 s), so that none is used just as we close it.
keepalive = 75
# A thread does not survive a fork: each worker loads its own model and starts its own engine.
preload_app = False
# Streams last; a worker is given up only when its main loop hangs.
timeout = 60
# A worker that is told to stop leaves by itself; this is for one that does not.
graceful_timeout = math.ceil(_settings.drain_notice_s + _settings.drain_s) + 10
# Session ids are in paths, and who reads a log must not get sessions.
accesslog = None
# One process tree, one way in: no second socket in somebody's home folder.
control_socket_disable = True


# Each process counts in a row of memory that is mapped here, before any of them is forked; see service/metrics.py.
_board = metrics.shared_board()


def pre_fork(server: Any, worker: Any) -> None:
    worker.metrics_row = _board.take()


def post_fork(server: Any, worker: Any) -> None:
    metrics.use(_board, worker.metrics_row)


def child_exit(server: Any, worker: Any) -> None:
    _board.give_back(worker.metrics_row)


def post_worker_init(worker: Any) -> None:
    """SIGTERM first lets the texts end (service/drain.py), and only then does what gunicorn does with it."""
    worker.wsgi.extensions["drain"].on_sigterm(lambda: worker.handle_exit(signal.SIGTERM, None))


def worker_int(worker: Any) -> None:
    """SIGINT and SIGQUIT do not wait; a stream that goes on would hold its thread, and the thread the process."""
    if hasattr(worker, "wsgi"):
        worker.wsgi.extensions["drain"].now()
