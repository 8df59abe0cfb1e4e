"""gunicorn's configuration. Every value comes from service.settings."""

import logging
import math
import resource
import signal
from typing import Any

from service.operations import metrics
from service.operations.address import host_and_port
from service.parent_death import signal_on_parent_death
from service.routes import audit
from service.server.process_limit import check_limit, request_threads
from service.settings import read_settings

_settings = read_settings()

bind = host_and_port(_settings.host, _settings.port)
workers = _settings.workers
worker_class = "service.server.worker.BufferedThreadWorker"
threads = request_threads(_settings)
check_limit(_settings)
# Slow and idle clients hold a connection but no thread. Each connection is a file descriptor: raise their limit.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_files = min(_hard, 65536) if _hard != resource.RLIM_INFINITY else 65536
resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, _files), _hard))
worker_connections = max(threads + 16, min(4096, _files // 2))
# Longer than the idle time of usual proxies (nginx and AWS ALB: 60 s), so that the proxy closes a connection first.
keepalive = 75
# A thread does not survive a fork, so each worker loads its own model and starts its own engine.
preload_app = False
# Seconds without a heartbeat of the worker's main loop before gunicorn kills it; long streams do not count.
timeout = 60
# A worker drains and exits by itself on SIGTERM; after this time gunicorn kills it.
graceful_timeout = math.ceil(_settings.drain_notice_s + _settings.drain_timeout_s) + 10
# No access log: session ids are in paths, and a reader of the log must not get sessions.
accesslog = None
# No control socket in the user's home folder.
control_socket_disable = True


# Each process counts in a row of a table that is mapped here, before any of them is forked.
_counters = metrics.shared_counters()


def pre_fork(server: Any, worker: Any) -> None:
    """Give the new worker its row."""
    worker.metrics_row = _counters.allocate_row()


def post_fork(server: Any, worker: Any) -> None:
    """Let the worker, which is this process now, count in its row, and exit at once when its master is gone."""
    signal_on_parent_death(signal.SIGQUIT, worker.ppid)
    audit.log.handlers = list(server.log.error_log.handlers)
    audit.log.setLevel(logging.INFO)
    audit.log.propagate = False
    metrics.use_row(_counters, worker.metrics_row)


def child_exit(server: Any, worker: Any) -> None:
    """Release the row of a worker that exited."""
    _counters.release_row(worker.metrics_row)


def post_worker_init(worker: Any) -> None:
    """Drain on SIGTERM (service/operations/drain.py), then exit as gunicorn would."""
    worker.wsgi.extensions["drain"].on_sigterm(lambda: worker.handle_exit(signal.SIGTERM, None))


def worker_int(worker: Any) -> None:
    """Interrupt every stream on SIGINT and SIGQUIT: a running stream's thread would keep the process alive."""
    if hasattr(worker, "wsgi"):
        worker.wsgi.extensions["drain"].stop_now()
