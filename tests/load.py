"""A mixed load of clients on a real service, which checks every answer: its text, or the reason of a refusal."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.servers import Service, parse_events

PROMPT = "hello"
REFUSALS = {404: ("unknown_session",), 429: ("queue_full",)}
"""The status codes that a client may get, and their reasons."""


@dataclass
class ClientSession:
    """A session as its client knows it: the text so far is the beginning of the text of its seed."""

    session_id: str
    seed: int
    n_chars: int
    used_at: float


@dataclass
class Outcome:
    """What the clients got."""

    counts: Counter[str] = field(default_factory=Counter)
    counts_of_refusals: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    lost_after_s: list[float] = field(default_factory=list)
    """For each session that was not found: how long ago it was used."""


class Load:
    """Clients that begin, continue, stream, leave, fork, read and delete sessions.

    Args:
        service: Whom they ask.
        expected: The text of each seed; None checks no text, where models change meanwhile.
    """

    def __init__(self, service: Service, expected: Sequence[str] | None = None) -> None:
        self.outcome = Outcome()
        self._service = service
        self._expected = expected
        self._lock = threading.Lock()

    def run(self, n_clients: int, goes_on: Callable[[int], bool]) -> Outcome:
        """Let clients work at the same time while `goes_on` of the number of operations so far holds."""
        threads = [threading.Thread(target=self._client, args=(random.Random(i), goes_on)) for i in range(n_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self.outcome

    @property
    def n_operations(self) -> int:
        with self._lock:
            return self.outcome.counts.total()

    def _client(self, rng: random.Random, goes_on: Callable[[int], bool]) -> None:
        sessions: list[ClientSession] = []
        operations = {
            self._begin: 30,
            self._continue: 25,
            self._stream: 15,
            self._leave: 10,
            self._read: 10,
            self._fork: 6,
            self._delete: 4,
        }
        with httpx.Client(base_url=self._service.url, timeout=60) as client:
            while goes_on(self.n_operations):
                (operation,) = rng.choices(list(operations), list(operations.values()))
                try:
                    operation(client, rng, sessions)
                except (httpx.TransportError, KeyError, ValueError) as error:
                    self._fault(f"{operation.__name__}: {error!r}")
                with self._lock:
                    self.outcome.counts[operation.__name__.lstrip("_")] += 1
                del sessions[: max(0, len(sessions) - 2000)]

    def _begin(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        seed = rng.randrange(len(self._expected or range(20)))
        body = {"prompt": PROMPT, "seed": seed, "max_chars": rng.randint(5, 60)}
        answer = self._answer(client.post("/generate", json=body))
        if answer is not None:
            session = ClientSession(answer["session_id"], seed, 0, time.monotonic())
            self._check(session, answer["text"])
            sessions.append(session)

    def _continue(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        if (session := _choose(rng, sessions)) is None:
            return
        body = {"session_id": session.session_id, "prompt": "", "max_chars": rng.randint(5, 60)}
        answer = self._answer(client.post("/generate", json=body), session, sessions)
        if answer is not None:
            self._check(session, answer["text"])

    def _stream(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        """A longer text, whose end must say that it is saved."""
        seed = rng.randrange(len(self._expected or range(20)))
        body = {"prompt": PROMPT, "seed": seed, "max_chars": rng.randint(200, 900), "stream": True}
        with client.stream("POST", "/generate", json=body) as response:
            response.read()
            if response.status_code != 200:
                self._answer(response)
                return
        events = parse_events(response.text)
        session = ClientSession(events[0].data["session_id"], seed, 0, time.monotonic())
        self._check(session, "".join(event.data["text"] for event in events if event.name == "message"))
        if events[-1].data.get("saved") is not True:
            self._fault(f"a stream ended with {events[-1].name} {events[-1].data}")
        sessions.append(session)

    def _leave(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        """A client that leaves in the middle of its stream."""
        body = {"prompt": PROMPT, "seed": 1, "max_chars": 900, "stream": True}
        with client.stream("POST", "/generate", json=body) as response:
            if response.status_code != 200:
                response.read()
                self._answer(response)
                return
            for n_chunks, _ in enumerate(response.iter_raw()):
                if n_chunks >= rng.randint(0, 3):
                    return

    def _read(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        if (session := _choose(rng, sessions)) is not None:
            self._answer(client.get(f"/sessions/{session.session_id}"), session, sessions)

    def _fork(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        if (session := _choose(rng, sessions)) is None:
            return
        answer = self._answer(client.post(f"/sessions/{session.session_id}/fork", json={}), session, sessions)
        if answer is not None:
            sessions.append(ClientSession(answer["session_id"], session.seed, session.n_chars, time.monotonic()))

    def _delete(self, client: httpx.Client, rng: random.Random, sessions: list[ClientSession]) -> None:
        if (session := _choose(rng, sessions)) is None:
            return
        sessions.remove(session)
        response = client.delete(f"/sessions/{session.session_id}")
        if response.status_code != 204:
            self._answer(response, session, sessions)

    def _answer(
        self,
        response: httpx.Response,
        session: ClientSession | None = None,
        sessions: list[ClientSession] | None = None,
    ) -> dict[str, Any] | None:
        """Return the answer, or None for a refusal, which must have a reason that a client can act on."""
        if response.status_code in (200, 201):
            if session is not None:
                session.used_at = time.monotonic()
            answer: dict[str, Any] = response.json()
            return answer
        code = response.json()["error"]["code"]
        with self._lock:
            self.outcome.counts_of_refusals[f"{response.status_code} {code}"] += 1
        if code not in REFUSALS.get(response.status_code, ()):
            self._fault(f"{response.request.url.path}: {response.status_code} {response.text}")
        if response.status_code in (429, 503) and int(response.headers.get("Retry-After", 0)) < 1:
            self._fault(f"{response.status_code} without Retry-After")
        if code == "unknown_session" and session is not None and sessions is not None:
            with self._lock:
                self.outcome.lost_after_s.append(time.monotonic() - session.used_at)
            if session in sessions:
                sessions.remove(session)
        return None

    def _check(self, session: ClientSession, text: str) -> None:
        start, session.n_chars = session.n_chars, session.n_chars + len(text)
        if self._expected is not None:
            whole = self._expected[session.seed]
            if session.n_chars <= len(whole) and text != whole[start : session.n_chars]:
                self._fault(f"session of seed {session.seed}, at {start}: wrong text {text!r}")

    def _fault(self, what: str) -> None:
        with self._lock:
            self.outcome.faults.append(what)


def _choose(rng: random.Random, sessions: list[ClientSession]) -> ClientSession | None:
    """Mostly one that was used lately, sometimes one that was idle for long."""
    if not sessions:
        return None
    lately = sessions[-20:]
    return rng.choice(sessions) if rng.random() < 0.2 else rng.choice(lately)
