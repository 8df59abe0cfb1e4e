"""python -m service.operations.healthcheck: exit 0 when the service on this machine is ready."""

from __future__ import annotations

import http.client
import sys

from service.operations.address import reachable_host
from service.settings import SettingsError, read_settings

_TIMEOUT_S = 4.0
_ALIVE_TIMEOUT_S = 0.5  # the launcher polls


def main() -> int:
    """Request /readyz, print the response and return the exit status."""
    try:
        settings = read_settings()
        status, body = _get("/readyz", settings.host, settings.port, _TIMEOUT_S)
    except (SettingsError, OSError, http.client.HTTPException) as e:
        print(f"no response: {e}")
        return 1
    print(status, body.strip())
    return 0 if status == 200 else 1


def is_alive(host: str, port: int) -> bool:
    """Tell whether the service on this machine responds, with a model or without."""
    try:
        return _get("/healthz", host, port, _ALIVE_TIMEOUT_S)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def _get(path: str, host: str, port: int, timeout_s: float) -> tuple[int, str]:
    """Return the status and the body of a response of the service that listens on HOST and PORT."""
    connection = http.client.HTTPConnection(reachable_host(host), port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
