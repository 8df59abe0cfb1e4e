"""Who may train at the same time: one worker for each device of a machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.jobs import worker

HOLD = """
import sys
from pathlib import Path
from service.jobs import worker
worker._BOOT_ID, worker._GPUS = Path(sys.argv[1]), Path(sys.argv[2])
with worker.device_lock(sys.argv[3], Path(sys.argv[4])):
    print("holds it", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("device", "other_device", "is_other_machine", "has_gpu", "excludes"),
    [
        ("cpu", "cpu", False, False, True),
        ("cpu", "auto", False, False, True),
        ("cuda", "auto", False, True, True),
        ("cpu", "auto", False, True, False),
        ("cpu", "cpu", True, False, False),
        ("cuda", "cuda", True, True, False),
    ],
)
def test_one_training_for_each_device(
    tmp_path: Path, device: str, other_device: str, is_other_machine: bool, has_gpu: bool, excludes: bool
) -> None:
    """In one folder that machines share: the setting's name does not matter, and other machines are not waited for."""
    gpus = tmp_path / "gpus"
    if has_gpu:
        (gpus / "0000:01:00.0").mkdir(parents=True)
    machines = []
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"{name}-boot-id")
        machines.append(tmp_path / name)

    def start(device: str, machine: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(machine), str(gpus), device, str(tmp_path / "runs")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start(device, machines[0]) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "holds it\n"
        with start(other_device, machines[1 if is_other_machine else 0]) as second:
            assert second.stdout is not None
            line = second.stdout.readline()
            assert ("waiting" in line) is excludes
            first.stdin.close()
            if excludes:
                assert second.stdout.readline() == "holds it\n"
            second.communicate("")
    assert first.returncode == 0
    assert second.returncode == 0


def test_gpus_that_differ_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of a machine, each with a GPU of its own, train at the same time."""
    (tmp_path / "0000:01:00.0").mkdir()
    monkeypatch.setattr(worker, "_GPUS", tmp_path)
    ids = set()
    for visible in ("0", "1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        ids.add(worker._device_id("auto"))
    assert len(ids) == 2
