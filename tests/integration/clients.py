"""Many clients at once, as they would be written against the README: they stream, resume, and obey Retry-After."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.servers import parse_events


@dataclass
class Client:
    """One session's client. It keeps what it was shown, and at which position."""

    base: str
    text: str = ""
    at: int = 0
    session_id: str = ""
    done: dict[str, Any] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # codes of the streams' last events
    gaps_s: list[float] = field(default_factory=list)  # between events of one stream

    def turn(self, **body: Any) -> None:
        """Ask for a text and see it to its end, however many streams that takes."""
        self.done = {}
        session = {"session_id": self.session_id} if self.session_id else {}
        with httpx.Client(base_url=self.base, timeout=60) as http:
            self.read(http, "POST", "/generate", json={**body, **session, "stream": True})
            while not self.done:
                path = f"/sessions/{self.session_id}/stream"
                self.read(http, "GET", path, headers={"Last-Event-ID": str(self.at)})

    def read(self, http: httpx.Client, method: str, path: str, **options: Any) -> None:
        """One stream, as far as it goes."""
        with http.stream(method, path, **options) as response:
            self.statuses.append(response.status_code)
            if response.status_code != 200:
                assert "retry-after" in response.headers, (response.status_code, response.read())
                time.sleep(float(response.headers["retry-after"]) / 4)  # a test is in a hurry
                return self._again(http, method, path, **options)
            buffer, last = "", 0.0
            for chunk in response.iter_text():
                buffer += chunk
                *whole, buffer = buffer.split("\n\n")
                for event in parse_events("\n\n".join(whole)):
                    if event.name == "start":
                        self.session_id, self.at = event.data["session_id"], event.data["position"]
                    elif event.name == "message":
                        self.text += event.data["text"]
                        self.at = event.id
                        now = time.monotonic()
                        self.gaps_s += [now - last] if last else []
                        last = now
                    elif event.name == "done":
                        self.done = event.data
                    else:
                        self.errors.append(event.data["error"]["code"])
        return None

    def _again(self, http: httpx.Client, method: str, path: str, **options: Any) -> None:
        if method == "POST":  # nothing was begun: the same again
            self.read(http, method, path, **options)


def at_once(tasks: Sequence[Callable[[], None]]) -> list[threading.Thread]:
    """Start all; an exception in one of them fails the test (warnings are errors)."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    return threads
