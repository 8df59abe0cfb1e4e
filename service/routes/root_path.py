"""A path below which the service is offered, such as /longhand: ROOT_PATH, or what trusted proxies say.

A proxy may strip the path or pass it on; both work. Addresses in redirects and in the API's description begin with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.wrappers import Response

from service.settings import ROOT_PATH

_WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class RootPath:
    """WSGI middleware: moves the path from the front of PATH_INFO to SCRIPT_NAME."""

    def __init__(self, app: _WsgiApp, root_path: str) -> None:
        """Wrap an application.

        Args:
            app: The application.
            root_path: Used unless a trusted proxy names another one; empty for none.
        """
        self._app = app
        self._root_path = root_path

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        forwarded = str(environ.get("SCRIPT_NAME", "")).rstrip("/")  # from X-Forwarded-Prefix of a trusted proxy
        root = forwarded if re.fullmatch(ROOT_PATH, forwarded) else self._root_path
        path = str(environ.get("PATH_INFO", ""))
        environ["SCRIPT_NAME"] = root
        if root and path == root:  # the page's relative links need the slash
            return Response(status=308, headers={"Location": root + "/"})(environ, start_response)
        if root and path.startswith(root + "/"):
            environ["PATH_INFO"] = path[len(root) :]
        return self._app(environ, start_response)
