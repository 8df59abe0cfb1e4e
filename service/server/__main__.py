"""python -m service.server: the HTTP server alone, without Redis and the trainer that `python -m service` starts."""

from __future__ import annotations

import sys

from gunicorn.app.wsgiapp import WSGIApplication


class Server(WSGIApplication):
    """gunicorn with the service's configuration, in the installation that runs this module."""

    def chdir(self) -> None:
        """Stay in the current folder. gunicorn would import from it, whatever lies there."""


def main() -> None:
    """Run the server until it is stopped. Options of gunicorn may follow on the command line."""
    sys.argv[1:] = ["-c", "python:service.server.gunicorn_config", *sys.argv[1:], "service.app:create_app()"]
    Server("%(prog)s [OPTIONS]", prog="python -m service.server").run()


if __name__ == "__main__":
    main()
