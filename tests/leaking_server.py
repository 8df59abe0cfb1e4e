"""The service with a leak of LEAK_BYTES a request: the control of tests/integration/test_soak.py."""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask

from service import app as service_app
from service.server.__main__ import Server

_leaked: list[bytes] = []


def create_app() -> Flask:
    """Make the service's application, which keeps some bytes of each request for ever."""
    app = service_app.create_app()
    n_bytes = int(os.environ["LEAK_BYTES"])

    @app.before_request
    def leak() -> Any:
        _leaked.append(os.urandom(n_bytes))

    return app


if __name__ == "__main__":
    sys.argv[1:] = ["-c", "python:service.server.gunicorn_config", "tests.leaking_server:create_app()"]
    Server("%(prog)s [OPTIONS]", prog="python -m tests.leaking_server").run()
