"""The memory of a job: a text of any size, also one with a single emoji, costs little more than its ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.text.memory_map import LARGE_BYTES
from tests.servers import ROOT

SIZES_MB = (10, 40)
MAX_BYTES_PER_CHARACTER = 4.0
"""One for the ids, which are pages of a file, and some for copies of the validation part; a text that is read as a
whole takes 17."""

PROGRAM = """
import json, re, sys
from pathlib import Path
from service.jobs.request import JobRequest
from service.jobs.training import JobEnvironment, Training
from service.store.corpora import Corpora
from service.store.promotions import MemoryPromotions

class Log:
    def put(self, **fields): pass
    def emit(self, name, data): pass
    def note(self, text): pass

folder, names = Path(sys.argv[1]), sys.argv[2].split(",")
settings = {"steps": 2, "batch_size": 4, "seq_length": 8, "n_hidden": 8, "n_embed": 4, "validations": 1}
request = JobRequest(names if len(names) > 1 else names[0], "quick", "if_better", False, settings)
environment = JobEnvironment(folder / "checkpoints", folder / "run", Corpora(folder / "corpora", 2**40), "cpu", 10)
training = Training(request, environment, Log(), False, lambda: False, MemoryPromotions())
result = training.run()
peak_kb = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]  # ru_maxrss may be the parent's
print(json.dumps({"peak": int(peak_kb) * 1024}))
"""


def peak_of_job(folder: Path, names: str) -> int:
    """Train a little on corpora in a process of its own, and return its peak memory in bytes."""
    command = [sys.executable, "-c", PROGRAM, str(folder), names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak: int = json.loads(done.stdout.splitlines()[-1])["peak"]
    return peak


@pytest.mark.parametrize("parts", [1, 2])
def test_the_peak_hardly_grows_with_the_text(parts: int, tmp_path: Path) -> None:
    """The same job on 10 and on 40 MB with one emoji, in one text or two: the difference, for each character."""
    peaks, corpora = [], tmp_path / "corpora"
    corpora.mkdir()
    line = "It was the best of times, it was the worst of times.\n"
    for megabytes in SIZES_MB:
        names = [f"text-{megabytes}-{part}" for part in range(parts)]
        for name in names:
            text = line * (megabytes * 10**6 // parts // len(line))
            (corpora / name).write_text("\U0001f600" + text)
        peaks.append(peak_of_job(tmp_path, ",".join(names)))
    per_character = (peaks[1] - peaks[0]) / ((SIZES_MB[1] - SIZES_MB[0]) * 10**6)
    print(f"{peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB: {per_character:.2f} bytes a character")
    assert per_character < MAX_BYTES_PER_CHARACTER
    assert SIZES_MB[0] * 10**6 > LARGE_BYTES
