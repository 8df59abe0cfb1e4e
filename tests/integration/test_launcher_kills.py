"""kill -9 of the launcher in its first seconds: whatever it had started by then is gone, and the next start works.

`make test` does it once, `make launcher-kills` 20 times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path

from tests.integration.launched import Launched, free_port
from tests.integration.test_jobs import words
from tests.servers import eventually

KILLS = int(os.environ.get("LAUNCHER_KILLS", "1"))
FIRST_S = 10.0


def test_the_next_start_works_each_time(tmp_path: Path) -> None:
    """At random moments of its first 10 seconds; the next start comes at once, on the same port, and becomes ready."""
    (tmp_path / "words.txt").write_text(words(20_000))
    seed = random.randrange(10**6)
    moments, port = random.Random(seed), str(free_port())
    arguments = ("--corpus", "words.txt", "--minutes", "60")
    for kill in range(1, KILLS + 1):
        moment = moments.uniform(0, FIRST_S)
        print(f"kill {kill} of {KILLS} after {moment:.3f} s (seed {seed})", flush=True)
        killed = Launched(tmp_path, *arguments, PORT=port)
        with contextlib.suppress(subprocess.TimeoutExpired):  # not a wait for anything: any moment must do
            killed.process.wait(moment)
        assert killed.process.poll() is None, killed.errors
        killed.process.kill()
        following = Launched(tmp_path, *arguments, PORT=port)
        eventually(following.is_ready, within_s=60)
        assert following.stop(signal.SIGTERM) == 128 + signal.SIGTERM
        assert killed.wait() == -signal.SIGKILL
