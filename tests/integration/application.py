"""The application without its server, for claims about answers in which no process, connection or signal has a part."""

from __future__ import annotations

import httpx

from service.app import create_app
from service.settings import Settings
from tests.servers import Service


class Application(Service):
    """The service's application in this process, with the interface of a Service; keyword arguments are its settings.

    It starts in no time. Sessions are in memory, unless REDIS_URL is given.
    """

    def __init__(self, **settings: str) -> None:
        self.url = "http://127.0.0.1"
        self._settings = {"SLOTS": "8", "MAX_WAITING": "8", "REDIS_URL": "", **settings}

    def start(self) -> None:
        self._app = create_app(Settings.model_validate({name.lower(): value for name, value in self._settings.items()}))
        self.client = httpx.Client(transport=httpx.WSGITransport(app=self._app.wsgi_app), base_url=self.url)

    def stop(self) -> None:
        self.client.close()
        self._app.extensions["drain"].stop_now()
