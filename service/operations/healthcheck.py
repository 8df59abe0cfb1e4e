"""python -m service.operations.healthcheck: exit 0 if the service on this machine is ready, for container engines."""

from __future__ import annotations

import http.client
import sys
from http import HTTPStatus

from service.settings import SettingsError, read_settings

_TIMEOUT_S = 4.0


def main() -> int:
    """Request /readyz, print the response and return the exit status."""
    try:
        settings = read_settings()
        host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        connection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_S)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        print(response.status, response.read().decode().strip())
        return 0 if response.status == HTTPStatus.OK else 1
    except (SettingsError, OSError, http.client.HTTPException) as e:
        print(f"no response: {e}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
