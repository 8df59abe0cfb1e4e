"""longhand doctor: a line for each check, the problems by name, and the exit status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from model.stepper.cuda import KERNELS, self_test
from service.operations import doctor
from tests import cuda_emulator
from tests.cuda_emulator import EmulatedGpu

NAMES = ["longhand", "machine", "python", "torch", "settings", "data", "redis", "model", "text", "stepper", "speed"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure the speed for a moment only, in an empty data folder."""
    monkeypatch.setattr(doctor, "_SECONDS", 0.02)
    monkeypatch.setenv("LONGHAND_HOME", str(tmp_path / "data"))


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str]]:
    """Run the command, and return its exit status and its lines by name."""
    status = doctor.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    return status, {line[:10].strip(): line[10:] for line in lines}


@pytest.mark.usefixtures("native_code")
def test_a_machine_with_which_nothing_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Exit 0, every check has its line, and nothing is created."""
    status, lines = examined(capsys)
    assert (status, lines["result"]) == (0, "nothing is wrong")
    assert list(lines) == [*NAMES, "result"]
    assert lines["stepper"] == "native, int8"
    assert "Valkey" in lines["redis"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value", "line", "words"),
    [
        ("PORT", "x", "settings", "PORT='x'"),
        ("REDIS_URL", "redis://127.0.0.1:1", "redis", "REDIS_URL: the server cannot be reached"),
        ("LONGHAND_HOME", "/proc/longhand", "data", "/proc"),
        ("CHECKPOINT_DIR", "damaged", "model", "damaged"),
    ],
)
def test_what_is_wrong_is_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    value: str,
    line: str,
    words: str,
) -> None:
    """The problem stands in its line, the other checks are made, and the exit status is 1."""
    if value == "damaged":
        value = str(tmp_path / value)
        Path(value).mkdir()
        (Path(value) / "promoted.json").write_text("{")
    monkeypatch.setenv(name, value)
    status, lines = examined(capsys)
    assert status == 1
    assert lines[line].startswith("PROBLEM: ")
    assert words in lines[line]
    assert lines["result"].endswith(("problem", "problems"))


def test_a_machine_without_the_native_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference stepper is a problem: it is named, with the reason and the remedy, and its speed is measured."""
    monkeypatch.setattr("model.stepper.cpu.library_path", lambda: tmp_path / "not-built.so")
    status, lines = examined(capsys)
    assert status == 1
    assert lines["stepper"].startswith("PROBLEM: reference, because ")
    assert "python -m model.native.build" in lines["stepper"]
    assert "characters per second" in lines["speed"]


@pytest.mark.usefixtures("native_code")
def test_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, emulated_gpu: EmulatedGpu, store: Path
) -> None:
    """What it is, whether it computes the CPU's bits, and its kernels; that it does not serve is a problem."""
    for name, value in cuda_emulator.environment(emulated_gpu.path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CHECKPOINT_DIR", str(store))
    self_test.tried.cache_clear()
    status, lines = examined(capsys, "--device", "cuda")
    result = r"emulated GPU, sm_90, 4 multiprocessors, \d+ of 1024 MiB free, driver for CUDA 13\.0"
    assert re.fullmatch(f"{result}; it computes the bits of the CPU", lines["gpu"])
    assert lines["kernels"].startswith(f"{len(KERNELS)} kernels, at most ")
    assert status == 1
    assert "emulated GPU is slower" in lines["stepper"]
    monkeypatch.setenv(cuda_emulator.FAULT_VARIABLE, "no device")
    status, lines = examined(capsys, "--device", "cuda")
    assert status == 1
    assert lines["gpu"] == "PROBLEM: the NVIDIA driver finds no GPU. Texts are generated on the CPU"
    assert examined(capsys, "--device", "cpu")[1].keys() & {"gpu", "kernels"} == set()
