"""The pip of the environment that is being made."""

from __future__ import annotations

import subprocess
from pathlib import Path


class SetupError(Exception):
    """Raised when the environment cannot be made; the message is one line that says why."""


class Pip:
    """Runs pip in an environment. pip's own configuration applies: index, links, proxy, certificates.

    Args:
        python: The Python of the environment.
    """

    def __init__(self, python: Path) -> None:
        """Use the pip of this interpreter."""
        self.python = python

    def install(self, *arguments: str) -> None:
        """Install packages.

        Raises:
            SetupError: pip failed; its last error is in the message.
        """
        done = self._run("install", "--progress-bar", "off", *arguments)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = (errors or done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SetupError(f"pip install {' '.join(arguments)} failed: {reason.removeprefix('ERROR: ').strip()}")

    def versions(self, package: str, *arguments: str) -> list[str]:
        """Return the versions of a package that can be had, the newest first; none when no source answers in time."""
        done = self._run("index", "versions", package, "--retries", "0", "--timeout", "5", *arguments)
        for line in done.stdout.splitlines():
            if line.startswith("Available versions: "):
                return line.removeprefix("Available versions: ").split(", ")
        return []

    def installed(self, package: str) -> str:
        """Return the version of a package in the environment; empty when it is not there, or only a part of it."""
        # pip writes the list of files at the end of an installation
        program = (
            f"from importlib import metadata as m; d = m.distribution({package!r}); print(d.version if d.files else '')"
        )
        done = subprocess.run([str(self.python), "-c", program], capture_output=True, text=True)
        return done.stdout.strip().removeprefix("None")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, capture_output=True, text=True)
