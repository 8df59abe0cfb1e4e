"""How gunicorn runs the service. Every value comes from service.settings."""

from typing import Any

from service import metrics
from service.settings import read_settings

_settings = read_settings()

bind = f"{_settings.host}:{_settings.port}"
workers = _settings.workers
worker_class = "gthread"
# A stream holds its thread, and so does a place in the line; the rest is for refusals, sessions and health checks.
threads = _settings.slots + _settings.max_waiting + 16
# A thread does not survive a fork: each worker loads its own model and starts its own engine.
preload_app = False
# Streams last; a worker is given up only when its main loop hangs.
timeout = 60
graceful_timeout = 30
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
