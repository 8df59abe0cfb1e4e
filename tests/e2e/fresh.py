"""The first commands of a newcomer, in a clean clone and with an empty environment: make fresh.

For each Python: `make serve` to a first streamed text, Ctrl-C, a second start, and `make serve CORPUS=file`. After
each, no process of the clone may be left. Only PATH, HOME (a new folder) and LANG are set, and a free PORT. It needs
minutes and up to 8 GB of disk for each Python, and removes what it made.

    make fresh                           every supported Python that is found
    make fresh FRESH=system              the system's Python alone
    FRESH_LINKS=folder make fresh        a folder of wheels that pip may use, like that of torch's CPU build
    FRESH_CACHE=folder make fresh        pip's cache, shared by the runs

It runs with the system's Python, and uses the standard library alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.environment.__main__ import SUPPORTED
from deploy.environment.torch_build import gigabytes

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin", "~/.pyenv/versions/*/bin", "~/.local/bin")
SET_UP_S = 1500.0  # the limit for a first start; it is for what never comes, and claims no speed
START_S = 300.0
STOP_S = 90.0
TEXT = "She sells sea shells by the sea shore; the shells that she sells are sea shells, I am sure.\n" * 300


class Failed(Exception):
    """Raised when a command does not do what the README says."""


class Clone:
    """A clean clone, and the commands that are typed in it."""

    def __init__(self, repository: Path, folder: Path, python: str) -> None:
        self.folder = folder / "longhand"
        self._log = folder / "log.txt"
        self._python = python
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(repository), str(self.folder)], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        home = folder / "home"
        home.mkdir()
        self._environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
        self._environment["PORT"] = str(self._port)
        for name, given in (("PIP_FIND_LINKS", "FRESH_LINKS"), ("PIP_CACHE_DIR", "FRESH_CACHE")):
            if os.environ.get(given):
                self._environment[name] = os.environ[given]

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run make serve in a terminal's way, stop it by Ctrl-C, and check that nothing is left."""
        command = ["make", "serve", f"PYTHON={self._python}", *arguments]
        with open(self._log, "wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C: every process of the terminal's group
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(command)} still runs {STOP_S:g} s after Ctrl-C") from error
        self._until(lambda: self.processes() == [], STOP_S, "processes are left: " + "; ".join(self.processes()))
        if "Traceback" in self.output():
            raise Failed("there is a traceback in the output")

    def text(self, process: subprocess.Popen[bytes], within_s: float, other_than: str = "") -> str:
        """Wait until a text is streamed, by another model than one, and return the name of its model."""
        models: list[str] = []

        def streamed() -> bool:
            if process.poll() is not None:
                raise Failed(f"make serve ended with status {process.returncode}")
            model, text = self._generate()
            if text and model != other_than:
                models.append(model)
            return bool(models)

        self._until(streamed, within_s, "no text came")
        return models[0]

    def _generate(self) -> tuple[str, str]:
        """Stream a sentence; return the model's name and the text, or nothing while there is no model."""
        body = json.dumps({"prompt": "She ", "max_chars": 80, "stream": True, "on_unknown": "skip"}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            stream = response.read().decode() if response.status == 200 else ""
        except (OSError, http.client.HTTPException):
            return "", ""
        finally:
            connection.close()
        model = re.search(r'"name": ?"([^"]+)"', stream)
        return model[1] if model else "", "".join(re.findall(r'"text": ?"(.*?)"[,}]', stream))

    def processes(self) -> list[str]:
        """Return the command lines of the processes that run in the clone or from it."""
        result = []
        for line in subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True).stdout.splitlines():
            pid, _, command = line.strip().partition(" ")
            folder = Path(f"/proc/{pid}/cwd")
            with_folder = os.path.realpath(folder) if os.access(folder, os.R_OK) else ""
            if int(pid) != os.getpid() and str(self.folder) in f"{command} {with_folder}":
                result.append(f"{pid} {command}")
        return result

    def output(self) -> str:
        """Return what the last command printed."""
        return self._log.read_text(errors="replace")

    @staticmethod
    def _until(holds: Callable[[], bool], within_s: float, problem: str) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline:
                raise Failed(f"{problem} within {within_s:g} s")
            time.sleep(0.2)


def try_out(repository: Path, python: str, folder: Path) -> None:
    """Type the first commands.

    Raises:
        Failed: One of them does not do what the README says; its output has been printed.
    """
    clone = Clone(repository, folder, python)
    try:
        start = time.monotonic()
        with clone.serving() as process:
            clone.text(process, SET_UP_S)
            took = time.monotonic() - start
        for line in clone.output().splitlines():
            if line.startswith("setup"):
                print(f"        | {line}", flush=True)
        size = gigabytes(clone.folder / ".venv")
        _say(f"make serve: a first text after {took:.0f} s; .venv takes {size}; nothing was left running")
        start = time.monotonic()
        with clone.serving() as process:
            model = clone.text(process, START_S)
            took = time.monotonic() - start
        _say(f"make serve again: a text after {took:.0f} s; nothing was left running")
        (clone.folder / "mine.txt").write_text(TEXT)
        start = time.monotonic()
        with clone.serving("CORPUS=mine.txt", "MINUTES=0.5") as process:
            clone.text(process, START_S, other_than=model)
            took = time.monotonic() - start
        _say(
            f"make serve CORPUS=mine.txt MINUTES=0.5: a text of its model after {took:.0f} s; nothing was left running"
        )
    except Failed:
        print("\n".join(f"        | {line}" for line in clone.output().splitlines()[-40:]), flush=True)
        raise


def supported_pythons() -> list[str]:
    """Return every Python on this machine that is supported, one of each version, the system's first."""
    result: dict[str, str] = {}
    for minor in range(SUPPORTED[0][1], SUPPORTED[1][1] + 1):
        for place in SEARCHED:
            pattern = Path(place).expanduser()
            for path in sorted(Path("/").glob(f"{str(pattern).lstrip('/')}/python3.{minor}")):
                result.setdefault(f"3.{minor}", str(path))
    return list(result.values())


def _say(text: str) -> None:
    print(f"fresh   {text}", flush=True)


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.e2e.fresh", description="Try the first commands.")
    parser.add_argument("which", choices=["all", "system"], nargs="?", default="all", help="Pythons (default all)")
    parser.add_argument("--repository", type=Path, default=ROOT, help="what is cloned (default: this one)")
    args = parser.parse_args()
    pythons = supported_pythons()[: 1 if args.which == "system" else None]
    failed = []
    for python in pythons:
        version = subprocess.run([python, "--version"], capture_output=True, text=True).stdout.strip()
        _say(f"{version}, {python}")
        folder = Path(tempfile.mkdtemp(prefix="longhand-fresh-"))
        try:
            try_out(args.repository, python, folder)
        except Failed as error:
            _say(f"FAILED: {error}")
            failed.append(python)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(pythons) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed or not pythons else 0


if __name__ == "__main__":
    sys.exit(main())
