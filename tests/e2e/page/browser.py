"""A Chromium for the tests of the page: CHROMIUM=path, one on the PATH, or Debian's, which root can install.

`python -m tests.e2e.page.browser` finds or installs it and prints its path, or why there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSTALL_S = 900


def find() -> str | None:
    """Return the path of a Chromium, if there is one."""
    path = os.environ.get("CHROMIUM")
    if path:
        return path if os.access(path, os.X_OK) else None
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def reason_for_none() -> str:
    """Return why `find` found none."""
    path = os.environ.get("CHROMIUM")
    if path:
        return f"CHROMIUM={path!r} is not an executable file"
    return "no Chromium on the PATH; set CHROMIUM, or run `make test-browser` as root to install Debian's"


def install() -> str:
    """Install Debian's package. Return an empty string, or why it failed."""
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
    """Find or install a Chromium; the exit status is always 0, because the tests skip themselves without one."""
    path = find()
    if path is None and not os.environ.get("CHROMIUM"):
        print("browser installing Debian's chromium; a minute or two the first time", flush=True)
        error = install()
        if error:
            print(f"browser not installed: {error}", flush=True)
        path = find()
    print(f"browser {path}" if path else f"browser none: {reason_for_none()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
