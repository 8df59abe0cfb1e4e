"""The environment and its lock: every version is pinned and installed, and all machines have wheels of them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.environment import __main__ as command
from deploy.environment import lock, torch_build
from deploy.environment.pip import Pip, SetupError
from model.cli import NOT_IN_THE_IMAGE
from tests.servers import ROOT

NEED_SWEEPS = (
    "model/training/sweep.py",
    "model/evaluation/report/plots.py",
)
MACHINES = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOCKS = ("runtime", "sweeps", "torch", "tests", "browser")


def locked(*names: str) -> dict[str, Requirement]:
    """Return what the locks pin for this machine, by package."""
    lines = [line for name in names for line in lock.packages(lock.path(name).read_text())]
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r for r in requirements if r.marker is None or r.marker.evaluate()}


@pytest.mark.parametrize("name", ["runtime", "sweeps", "tests"])
def test_the_environment_is_what_the_lock_says(name: str) -> None:
    """Every locked package is installed in exactly its version."""
    wrong = {}
    for package, requirement in locked(name).items():
        installed = metadata.version(package)
        if not requirement.specifier.contains(installed):
            wrong[package] = (str(requirement.specifier), installed)
    assert wrong == {}
    assert metadata.version("torch").partition("+")[0] == torch_build.locked_version()


def test_the_lock_is_complete() -> None:
    """What a locked package requires is locked, too; nothing floats."""
    for name, others in {"runtime": (), "sweeps": ("runtime",), "tests": ("runtime", "sweeps")}.items():
        pinned = locked("torch", *others, name)
        for package in locked(name):
            for line in metadata.requires(package) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                    assert canonicalize_name(needed.name) in pinned, f"{package} needs {line}"


def test_the_image_of_the_api_has_nothing_that_only_sweeps_need(tmp_path: Path) -> None:
    """Neither api nor trainer loads those packages; the commands that need one say so in a line."""
    assert set(lock.FOR_SWEEPS) == set(NOT_IN_THE_IMAGE) <= set(locked("sweeps"))
    assert not set(locked("sweeps")) & set(locked("runtime", "torch"))
    without = f"import runpy, sys\nsys.modules.update(dict.fromkeys({sorted(locked('sweeps'))!r}))\n"
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("service", "model")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__main__.py" and path.relative_to(ROOT).as_posix() not in NEED_SWEEPS
    ]
    assert len(modules) > 100
    loads = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", without + loads], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arguments in (["sweep", "--storage", "s.db"], ["plot", str(tmp_path)], ["report"]):
        (tmp_path / "settings.json").write_text('{"model": {"cell": "lstm", "n_layers": 1, "n_hidden": 8}}')
        command = f"sys.argv[1:] = {arguments!r}\nrunpy.run_module('model', run_name='__main__')"
        done = subprocess.run([sys.executable, "-c", without + command], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert re.fullmatch(r"error: this command needs (optuna|matplotlib), .*\n", done.stderr), done.stderr


def test_every_requirement_is_locked_as_it_is_pinned() -> None:
    """The lists that people edit and the locks agree, and every locked package has its hashes."""
    entries = [lock.packages(lock.path(name).read_text()) for name in LOCKS]
    pins = {line.partition(" ")[0] for packages in entries for line in packages}
    for source in lock.SOURCES.values():
        for line in (ROOT / source).read_text().splitlines():
            pin = line.partition("#")[0].partition(";")[0].strip()
            assert not pin or pin.startswith("-r") or pin in pins, f"{source}: {pin}; make lock"
    for packages in entries:
        assert all("--hash=sha256:" in entry for entry in packages.values())


def test_the_supported_versions_are_the_same_everywhere() -> None:
    """pyproject.toml, the set-up and these tests name the same versions of Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (oldest, newest) = command.SUPPORTED
    assert project["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    assert (PYTHONS[0], PYTHONS[-1]) == (".".join(map(str, oldest)), ".".join(map(str, newest)))


@pytest.mark.parametrize("machine", MACHINES)
def test_every_locked_package_has_a_wheel(machine: str, tmp_path: Path) -> None:
    """On Linux x86-64, Linux aarch64 and Apple silicon nothing has to be compiled, with any supported Python."""
    everything = tmp_path / "locked.txt"
    everything.write_text("".join(lock.path(name).read_text() for name in LOCKS))
    compile = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "--no-deps", "--no-header"]
    compile += ["--only-binary", ":all:", "--python-platform", machine, "--output-file", os.devnull, str(everything)]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_HTTP_TIMEOUT": "20"}
    missing = {}
    for python in PYTHONS:
        done = subprocess.run([*compile, "--python-version", python], capture_output=True, text=True, env=environment)
        if re.search(r"error sending request|dns error|timed out|[Cc]onnect", done.stderr):
            pytest.skip(f"the package index does not answer: {done.stderr.strip().splitlines()[-1]}")
        if done.returncode:
            missing[python] = done.stderr
    assert missing == {}


class FakePip(Pip):
    """A pip that can offer some versions of torch and records what it is to install."""

    def __init__(self, folder: Path, offers: dict[str, list[str]]) -> None:
        super().__init__(folder / "bin" / "python")
        self._offers = offers
        self.installs: list[str] = []

    def installed(self, package: str) -> str:
        return ""

    def versions(self, package: str, *arguments: str) -> list[str]:
        return self._offers.get(" ".join(arguments), [])

    def install(self, *arguments: str) -> None:
        self.installs.append(" ".join(arguments))


VERSION = torch_build.locked_version()
CPU = f"{VERSION}+cpu"
PYTORCH = f"--index-url {torch_build.CPU_INDEX}"


@pytest.mark.parametrize(
    ("gpu", "index", "offers", "expected"),
    [
        (False, "", {"": [CPU, VERSION]}, f"--no-deps torch=={CPU}"),
        (False, "", {"": [VERSION], PYTORCH: [CPU]}, f"--no-deps {PYTORCH} torch=={CPU}"),
        (False, "/wheels", {"--find-links /wheels": [CPU]}, f"--no-deps --find-links /wheels torch=={CPU}"),
        (False, "/wheels", {"": [CPU]}, "torch.txt"),
        (False, "", {}, "torch.txt"),
        (True, "", {"": [CPU]}, "torch.txt"),
    ],
)
def test_the_build_of_torch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpu: bool,
    index: str,
    offers: dict[str, list[str]],
    expected: str,
) -> None:
    """The CPU build where there is no GPU and a source has it, else the locked default; the line says which and why."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(torch_build, "_has_nvidia_gpu", lambda: gpu)
    monkeypatch.setenv("TORCH_INDEX", index)
    pip = FakePip(tmp_path, offers)
    torch_build.install(pip)
    assert len(pip.installs) == 1
    assert pip.installs[0].endswith(expected)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert ("the CPU build (" in line) == ("+cpu" in expected)
    assert ("no NVIDIA GPU" in line) != gpu
    assert "on disk" in line


def test_a_build_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    """--torch cpu never installs the large build; pip's own error is in the message of a failed installation."""
    with pytest.raises(SetupError, match="TORCH_INDEX"):
        torch_build.install(FakePip(tmp_path, {}), "cpu")
    with pytest.raises(SetupError, match=r"pip install .* failed: No matching distribution found for longhand-nothing"):
        Pip(Path(sys.executable)).install("--no-index", "longhand-nothing")


def test_every_lock_is_installed_with_its_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in the image, whose build runs the same command."""
    pip = FakePip(tmp_path, {})
    monkeypatch.setattr(command, "_environment", lambda _: pip)
    monkeypatch.setattr(torch_build, "install", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["environment", "--folder", str(tmp_path), "--tests", "--browser"])
    assert command.main() == 0
    assert len(pip.installs) == 4
    assert all(install.startswith("--no-deps --require-hashes --requirement ") for install in pip.installs)
    assert "python -m deploy.environment --folder /opt/longhand" in (ROOT / "deploy/Dockerfile").read_text()


def test_an_environment_whose_set_up_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip takes a package for installed of which it had removed a part; one that ended with an error is kept."""

    class Killed(BaseException):
        """kill -9, as far as a test in the same process can."""

    def end_with(error: BaseException | None) -> str:
        def install(*_: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(torch_build, "install", install)
        if isinstance(error, Killed):
            with pytest.raises(Killed):
                command.main()
        else:
            assert command.main() == (0 if error is None else 1)
        return capsys.readouterr().out

    folder = tmp_path / "environment"
    monkeypatch.setattr(sys, "argv", ["environment", "--folder", str(folder)])
    monkeypatch.setattr(Pip, "install", lambda *_: None)
    assert "a new environment" in end_with(SetupError("no network"))
    half_removed = folder / "half-removed"
    half_removed.touch()
    assert "a new environment" not in end_with(Killed())
    assert "a new environment" in end_with(None)
    assert not half_removed.exists()
    assert "a new environment" not in end_with(None)


@pytest.mark.parametrize("is_right", [True, False])
def test_a_package_that_was_changed_is_not_installed(tmp_path: Path, is_right: bool) -> None:
    """pip compares the hash of the file that it got, also of one from a folder of wheels."""
    wheel = tmp_path / "longhand_probe-1.0-py3-none-any.whl"
    info = "longhand_probe-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("longhand_probe.py", "")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: longhand-probe\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", f"longhand_probe.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest() if is_right else "0" * 64
    requirements = tmp_path / "lock.txt"
    requirements.write_text(f"longhand-probe==1.0 --hash=sha256:{digest}\n")
    options = ["--no-index", "--find-links", str(tmp_path), "--target", str(tmp_path / "site")]
    options += ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    if is_right:
        Pip(Path(sys.executable)).install(*options)
    else:
        with pytest.raises(SetupError):
            Pip(Path(sys.executable)).install(*options)
    assert (tmp_path / "site" / "longhand_probe.py").exists() == is_right
