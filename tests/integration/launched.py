"""The launcher as its user starts it, in a folder of its own, and a census of the processes that come of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any, ClassVar

import httpx

from service.launcher.folder_lock import is_free
from tests.servers import ROOT, eventually

_MARK = "LONGHAND_TEST_LAUNCHER"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Launched:
    """`python -m service` in a folder; keyword arguments are its environment.

    Every process that comes of it inherits a mark in its environment, by which it is found whoever its parent is.
    `running` has those that no test has stopped; `shared` those that several tests share, whose fixture stops them.
    """

    running: ClassVar[list[Launched]] = []
    shared: ClassVar[list[Launched]] = []

    def __init__(self, folder: Path, *args: str, address: str = "127.0.0.1", **environment: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.port = int(environment.get("PORT", free_port()))
        self._temporary = Path(environment.pop("TMPDIR", "") or tempfile.mkdtemp(prefix="launched-"))
        own = {"PORT": str(self.port), "SLOTS": "4", "OMP_NUM_THREADS": "1", "TMPDIR": str(self._temporary)}
        paths = os.pathsep.join([*environment.pop("PYTHONPATH", "").split(os.pathsep), str(ROOT)]).strip(os.pathsep)
        inherited = {k: v for k, v in os.environ.items() if k not in ("HOST", "REDIS_URL", "WORKERS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", *args],
            cwd=folder,
            env={**inherited, **own, **environment, "PYTHONPATH": paths, _MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        Launched.running.append(self)
        self.url = f"http://{address}:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        with stream:
            for line in stream:
                lines.append(line.rstrip())

    def get(self, path: str) -> httpx.Response | None:
        """An answer of the service, or None while it is not up."""
        try:
            return self.client.get(path)
        except httpx.TransportError:
            return None

    def post(self, path: str, **body: Any) -> httpx.Response:
        """An answer of the service."""
        return self.client.post(path, json=body)

    def generate(self) -> httpx.Response:
        """A short text."""
        return self.post("/generate", max_chars=20)

    def ready(self) -> dict[str, Any] | None:
        """What /readyz answers with 200, or None."""
        assert self.process.poll() is None, [*self.lines, *self.errors]
        answer = self.get("/readyz")
        body: dict[str, Any] | None = answer.json() if answer is not None and answer.status_code == 200 else None
        return body

    def is_ready(self) -> bool:
        """Whether the service is ready, with a model or while a first one is trained."""
        return self.ready() is not None

    def processes(self) -> dict[int, str]:
        """The process ids and command lines of everything that came of this start, whoever its parent is.

        Redis writes its title over its environment: it is known by the folder that it works in.
        """
        result = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                environment = (folder / "environ").read_bytes().split(b"\0")
                is_redis = (folder / "cwd").readlink() == self.folder / "data" / "redis"
                if f"{_MARK}={self.mark}".encode() in environment or is_redis:
                    result[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return result

    def pid_of(self, part: str) -> int:
        """The process whose command line contains this; of parent and forks, the parent."""
        return min(pid for pid, command in self.processes().items() if part in command)

    def horse(self) -> int | None:
        """The process that trains: the trainer's child."""
        children = Path(f"/proc/{(pid := self.pid_of('service.jobs'))}/task/{pid}/children").read_text().split()
        return int(children[0]) if children else None

    def stop(self, number: signal.Signals) -> int:
        """Send a signal to the launcher, see that everything goes with it, and return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, see that no process, lock or socket is left, and return the exit status."""
        status = self.process.wait(timeout=90)
        Launched.running.remove(self)
        self.client.close()
        eventually(lambda: not self.processes())
        for reader in self._readers:
            reader.join()
        data = self.folder / "data"
        assert is_free(data)
        if status >= 0:
            assert not (data / "launcher.json").exists()
        assert list(self._temporary.glob("longhand-*")) == []
        shutil.rmtree(self._temporary)  # torch keeps an empty folder there
        return status
