"""python -m service.operations.healthcheck: exit 0 when the service on this machine is ready."""

from __future__ import annotations

import http.client
import sys

from service.settings import SettingsError, read_settings

_PATIENCE_S = 4.0


def main() -> int:
    try:
        settings = read_settings()
        host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        connection = http.client.HTTPConnection(host, settings.port, timeout=_PATIENCE_S)
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.status, answer.read().decode().strip())
        return 0 if answer.status == 200 else 1
    except (SettingsError, OSError, http.client.HTTPException) as e:
        print(f"no answer: {e}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
