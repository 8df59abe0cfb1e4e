"""Many clients at once, as they would be written against the README: they stream, resume, and obey Retry-After."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.servers import Event, read_events


def _never() -> bool:
    return False


@dataclass
class Client:
    """One session's client. It keeps what it was shown, and at which position."""

    base: str
    enough: Callable[[], bool] = _never  # asked after each event; then it leaves
    text: str = ""
    at: int = 0
    session_id: str = ""
    done: dict[str, Any] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # codes of the streams' last events
    gaps_s: list[float] = field(default_factory=list)  # between events of one stream

    def __post_init__(self) -> None:
        self._http = httpx.Client(timeout=60, verify=False)  # nothing here is encrypted; certificates take time to load

    def turn(self, **body: Any) -> None:
        """Ask for a text and see it to its end, however many streams that takes."""
        self.done = {}
        session = {"session_id": self.session_id} if self.session_id else {}
        while not self.read("POST", "/generate", json={**body, **session, "stream": True}):
            pass
        while not self.done and not self.enough():
            self.read("GET", f"/sessions/{self.session_id}/stream", headers={"Last-Event-ID": str(self.at)})

    def read(self, method: str, path: str, **options: Any) -> bool:
        """One stream, as far as it goes; False, after a part of Retry-After, if it was refused for now."""
        with self._http.stream(method, self.base + path, **options) as response:
            self.statuses.append(response.status_code)
            if response.status_code == 204:  # all of the text is here; only the stream's last event was lost
                session = self._http.get(f"{self.base}/sessions/{self.session_id}").json()
                self.done = {"finish_reason": session["turn"]["status"], "position": session["position"]}
                return True
            if response.status_code != 200:
                assert "retry-after" in response.headers, (response.status_code, response.read())
                time.sleep(float(response.headers["retry-after"]) / 4)  # a test is in a hurry
                return False
            last = 0.0
            for event in read_events(response):
                last = self._take(event, last)
                if self.enough():
                    break
        return True

    def _take(self, event: Event, last: float) -> float:
        now = time.monotonic()
        if event.name == "start":
            self.session_id, self.at = event.data["session_id"], event.data["position"]
        elif event.name == "message":
            self.text += event.data["text"]
            self.at = event.id
            self.gaps_s += [now - last] if last else []
            return now
        elif event.name == "done":
            self.done = event.data
        else:
            self.errors.append(event.data["error"]["code"])
        return last

    def close(self) -> None:
        self._http.close()


def at_once(tasks: Sequence[Callable[[], None]]) -> list[threading.Thread]:
    """Start all; an exception in one of them fails the test (warnings are errors)."""
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    return threads
