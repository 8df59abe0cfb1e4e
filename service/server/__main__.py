"""python -m service.server: the HTTP server alone, without Redis and the trainer that `python -m service` starts."""

from __future__ import annotations

import sys

from gunicorn.app.wsgiapp import WSGIApplication

from service.access.api_keys import ApiKeys
from service.access.limits import RateLimiter
from service.settings import Settings, SettingsError, loopback_only, read_settings
from service.store.connect import close, connect
from service.store.redis_server import require_usable


class Server(WSGIApplication):
    """gunicorn with the service's configuration, in the installation that runs this module."""

    def chdir(self) -> None:
        """Stay in the current folder. gunicorn would import from it, whatever lies there."""


def main() -> int | None:
    """Run the server until it is stopped. Options of gunicorn may follow on the command line."""
    try:
        _check(read_settings())
    except SettingsError as error:
        print(f"error   {error}", file=sys.stderr)
        return 1
    sys.argv[1:] = ["-c", "python:service.server.gunicorn_config", *sys.argv[1:], "service.app:create_app()"]
    Server("%(prog)s [OPTIONS]", prog="python -m service.server").run()
    return None


def _check(settings: Settings) -> None:
    """Find out before any process is forked whether the Redis servers, if they answer, and the keys can be used.

    Raises:
        SettingsError: One cannot, or API_KEYS_FILE cannot.
    """
    for name, url in (("REDIS_URL", settings.redis_url), ("JOBS_REDIS_URL", settings.jobs_redis_url)):
        if url:
            require_usable(name, url)
    keys = ApiKeys(settings.api_keys, settings.api_keys_file)
    if not keys.are_required and not loopback_only(settings):
        problem = f"there are no API_KEYS, so whoever reaches port {settings.port} may generate, score and inspect"
        print(f"warning HOST={settings.host}: {problem}", file=sys.stderr, flush=True)
    if settings.redis_url and (settings.rate_limit or settings.chars_limit or settings.api_keys_file):
        client = connect(settings.redis_url)
        try:
            rates = {"RATE_LIMIT": settings.rate_limit, "CHARS_LIMIT": settings.chars_limit}
            for name, rate in {**rates, "API_KEYS_FILE": "1/second" if settings.api_keys_file else ""}.items():
                RateLimiter(rate, client).require_working(name)
        finally:
            close(client)


if __name__ == "__main__":
    sys.exit(main())
