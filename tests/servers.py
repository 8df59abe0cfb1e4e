"""Real servers that tests start themselves: Redis (the embedded Valkey or another) and the service under gunicorn."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
from httpx_sse import EventSource, ServerSentEvent

from service.store.redis_server import find_server_program

ROOT = Path(__file__).parent.parent
SECRET = "planted-secret-5d1f0c9b7e3a2846"  # noqa: S105 - the same in every process of a run
"""The password of every Redis that tests start, and part of keys: no output of any process may contain it."""
OUTPUTS = Path(tempfile.mkdtemp(prefix="lh-outputs-"))
"""What the processes of this run have printed; conftest searches it at the end."""


def eventually(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until something holds; the limit is for what never comes, not a claim of speed."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {within_s:g} s"
        time.sleep(0.02)


class RedisServer:
    """A Redis of its own on a Unix socket, which can be stopped and come back, with or without its data."""

    def __init__(self, *options: str, program: str = "") -> None:
        self._program = program or find_server_program()
        self._folder = Path(tempfile.mkdtemp(prefix="lh-"))
        self._options = options
        self.url = f"unix://:{SECRET}@{self._folder}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, "--port", "0", "--unixsocket", f"{self._folder}/redis.sock"]
        command += [
            "--dir",
            str(self._folder),
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--loglevel",
            "warning",
        ]
        command += ["--requirepass", SECRET]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        eventually((self._folder / "redis.sock").exists)

    def stop(self, *, lose_data: bool = False) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL if lose_data else signal.SIGTERM)
        self._process.wait()
        (self._folder / "redis.sock").unlink(missing_ok=True)
        if lose_data:
            shutil.rmtree(self._folder)
            self._folder.mkdir()

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP makes it mute: connections are accepted, and no command is answered."""
        assert self._process is not None
        self._process.send_signal(number)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


_n_outputs = itertools.count()


def output_file() -> IO[bytes]:
    """A new file for what a process prints, which is searched for secrets at the end of the run."""
    return open(OUTPUTS / f"{next(_n_outputs)}", "wb")


def find_secrets() -> list[str]:
    """The files in which a process printed the secret."""
    return [path.name for path in OUTPUTS.iterdir() if SECRET.encode() in path.read_bytes()]


def _check_answer(response: httpx.Response) -> None:
    if "content-length" in response.headers:  # not a stream
        assert SECRET not in response.read().decode(errors="replace"), "an answer contains the planted secret"


@dataclass
class Event:
    """A server-sent event."""

    name: str = "message"
    id: Any = None  # a position; or what a stream of another kind counts by
    data: dict[str, Any] = field(default_factory=dict)


class Service:
    """The service under gunicorn, on a free port; keyword arguments are its environment."""

    module = "service.server"

    started_path = "/readyz"
    """Answers 200 when the service has started."""

    def __init__(self, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # Nobody takes the jobs that other tests have queued in a Redis which they share.
        limits = {"SLOTS": "8", "MAX_WAITING": "8", "MAX_QUEUED_JOBS": "1000"}
        self._environment = {**os.environ, **limits, **environment, "PORT": str(self.port)}
        self._environment.pop("HOST", None)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=60, event_hooks={"response": [_check_answer]})
        command = [sys.executable, "-m", self.module]
        with output_file() as output:
            self._output = Path(output.name)
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        eventually(self._answers, within_s=60)

    def output(self) -> str:
        """What it has printed so far, its log included."""
        return self._output.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the service ended while it was starting"
        try:
            return self.client.get(self.started_path).status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        assert self._process is not None
        self.client.close()
        self.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            self.kill()

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> None:
        """To gunicorn's master, as an engine would; `wait` for what becomes of it."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9, the master and its workers."""
        self.send_signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """To every process of the service."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def workers(self) -> list[int]:
        """The process ids of gunicorn's workers."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill_worker(self, pid: int) -> None:
        """kill -9 of one of the workers; gunicorn starts another."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def signal_workers(self, number: signal.Signals) -> None:
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def post(self, **body: Any) -> httpx.Response:
        return self.client.post("/generate", json=body)

    def generate(self, **body: Any) -> dict[str, Any]:
        """A JSON answer that must succeed."""
        response = self.post(**body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def events(self, **body: Any) -> list[Event]:
        """A streamed answer, to its end."""
        with self.client.stream("POST", "/generate", json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            return list(read_events(response))

    def resume(self, session_id: str, after: int | None = None) -> list[Event]:
        """A stream that is gone on with, to its end; nothing if the client has all of it."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self.client.stream("GET", f"/sessions/{session_id}/stream", headers=headers) as response:
            if response.status_code == 204:
                return []
            assert response.status_code == 200, response.read()
            return list(read_events(response))

    def streamed_text(self, **body: Any) -> str:
        return "".join(e.data["text"] for e in self.events(**body) if e.name == "message")


class ServiceWithoutModel(Service):
    """A service that has a model later, or never: it answers, but it is not ready."""

    started_path = "/healthz"


class Worker:
    """The process that trains, which can be killed; keyword arguments are its environment."""

    def __init__(self, **environment: str) -> None:
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "service.jobs"]
        with output_file() as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdout=output, stderr=output)

    def horse(self) -> int | None:
        """The process id of the training that runs, if one does."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def running_horse(self) -> int:
        """The process id of the training, which must run: 0 would send a signal to the tests themselves."""
        horse = self.horse()
        assert horse is not None, "no training runs"
        return horse

    def kill(self) -> None:
        """As if its machine had lost power; what it forked is not told."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait()


def read_events(response: httpx.Response) -> Iterator[Event]:
    """The events of a response, as they come. As in a browser, an event without an id has the one before it."""
    for event in EventSource(response).iter_sse():
        if event.data:  # else it is a comment
            yield as_event(event)


def parse_events(stream: str) -> list[Event]:
    """The events of a text that was received by other means."""
    headers = {"Content-Type": "text/event-stream"}
    return list(read_events(httpx.Response(200, headers=headers, content=stream.encode())))


def as_event(event: ServerSentEvent) -> Event:
    """An event with its data as an object, and its id as a number if it is one."""
    id = int(event.id) if event.id.isdigit() else event.id or None
    return Event(event.event, id, json.loads(event.data))
