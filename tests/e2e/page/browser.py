"""A real Chromium for the page's tests: CHROMIUM=path, one on the PATH, or Debian's, installed where that can be done.

python -m tests.e2e.page.browser finds or installs it, and says which it is, or why there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSTALL_S = 900


def find() -> str | None:
    """The path of a Chromium, if there is one."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if os.access(named, os.X_OK) else None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def why_none() -> str:
    named = os.environ.get("CHROMIUM")
    if named:
        return f"CHROMIUM={named!r} is no program that can be run"
    return "no Chromium on the PATH; set CHROMIUM, or let `make test-browser` install Debian's as root"


def install() -> str:
    """Debian's package; an empty string, or why it could not be had."""
    if shutil.which("apt-get") is None:
        return "no apt-get here"
    if os.geteuid() != 0:
        return "apt-get needs root"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        try:
            done = subprocess.run(
                ["apt-get", *command], env=environment, capture_output=True, text=True, timeout=_INSTALL_S
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {command[0]} took more than {_INSTALL_S} s"
        if done.returncode and command[0] == "install":
            return f"apt-get install chromium: {(done.stderr or done.stdout).strip()[-200:]}"
    return ""


def main() -> int:
    """Never fails: without a browser the tests say themselves why they are skipped."""
    path = find()
    if path is None and not os.environ.get("CHROMIUM"):
        print("browser installing Debian's chromium; a minute or two the first time", flush=True)
        said = install()
        if said:
            print(f"browser not installed: {said}", flush=True)
        path = find()
    print(f"browser {path}" if path else f"browser none: {why_none()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
