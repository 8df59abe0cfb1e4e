"""The supervisor and the ids of its children: one that may belong to another process is never signalled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT, eventually

SCRIPT = """
import os, signal, sys
from pathlib import Path
from service.launcher.reaper import deregistration
from service.launcher.supervisor import Child, Supervisor

class Observed(Supervisor):
    def _tell_reaper(self, line):
        if line.startswith(b"ended"):
            os.kill(int(line.split()[1]), 0)  # fails if the system could have given the id to another process
            print("ended", "first" if line == deregistration(first.process.pid) else "second", flush=True)
        super()._tell_reaper(line)

folder = Path(sys.argv[1])
lock = os.open(folder, os.O_RDONLY)
with Observed(folder) as supervisor:
    supervisor.share_lock(lock)
    first = supervisor.start(Child("first", [sys.executable, "-c", sys.argv[2]]))
    second = supervisor.start(Child("second", ["sleep", "1000"]))
    ACT
"""
"""`first` ends by itself, `second` does not."""


def run(folder: Path, act: str, code: str) -> tuple[list[str], int]:
    """Run a supervisor in a process of its own; return what it printed and its exit status."""
    command = [sys.executable, "-c", SCRIPT.replace("ACT", act), str(folder), code]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    return done.stdout.splitlines(), done.returncode


WAYS: dict[str, str] = {
    "it waits": "supervisor.wait()",
    "it asks": "supervisor.wait_until(lambda: first.poll() is not None, 30)",
    "it signals a child that has ended": "os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT);"
    " first.send(signal.SIGTERM); first.kill_group()",
    "it stops the child": "supervisor.stop([first])",
}


@pytest.mark.parametrize("way", WAYS)
def test_an_ended_child_is_taken_back_from_the_reaper_before_its_id_is_free(tmp_path: Path, way: str) -> None:
    """However the supervisor notices the end: at that moment, once, and not only when it stops or starts a child."""
    lines, status = run(tmp_path, f"{WAYS[way]}; print(first.poll() is not None, flush=True)", "")
    assert lines == ["ended first", "True", "ended second"]
    assert status == 0


def test_a_child_is_started_again_under_another_id(tmp_path: Path) -> None:
    """Each of its processes is taken back once."""
    act = "supervisor.wait(); supervisor.start(first); supervisor.wait(); print('stopping', flush=True)"
    lines, status = run(tmp_path, act, "")
    assert lines == ["ended first", "ended first", "stopping", "ended second"]
    assert status == 0


def test_after_kill_9_the_running_child_alone_is_ended(tmp_path: Path) -> None:
    """The reaper ends `second`; the id of `first` is no concern of it any more."""
    act = "supervisor.wait(); print(second.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    lines, status = run(tmp_path, act, "")
    assert status == -9
    assert lines[0] == "ended first"
    eventually(lambda: not exists(int(lines[1])))


def exists(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody reaps does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
