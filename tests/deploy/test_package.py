"""The package: a wheel built from the source archive, installed, used from an empty folder, and uninstalled."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

import model
from tests.servers import ROOT, eventually

SOURCES = (
    "longhand",
    "model",
    "service",
    "deploy",
    "pyproject.toml",
    "MANIFEST.in",
    "requirements.txt",
    "README.md",
    "LICENSE",
)


class Installation:
    """Longhand installed from its wheel into an environment that borrows every other package from this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "environment" / "bin"
        venv.create(folder / "environment")  # this environment's pip serves it, too
        lib = next((folder / "environment" / "lib").glob("python3*")) / "site-packages"
        (lib / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
        self.before = self.files()
        self.wheel = _built_wheel(folder)
        self.install()

    def files(self) -> set[Path]:
        """Return the files of the environment, without bytecode."""
        return {path for path in (self.folder / "environment").rglob("*") if "__pycache__" not in path.parts}

    def longhand(self, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command in a folder."""
        command = [str(self.bin / "longhand"), *arguments]
        return subprocess.run(command, cwd=cwd, env=_environment(**environment), capture_output=True, text=True)

    def install(self) -> None:
        """Install the package from its wheel."""
        self._pip("install", "--no-deps", "--no-index", str(self.wheel))

    def uninstall(self) -> None:
        """Remove the package."""
        self._pip("uninstall", "--yes", "longhand-textgen")

    def _pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        subprocess.run([*command, "--quiet", "--disable-pip-version-check", *arguments], check=True)


def _environment(**more: str) -> dict[str, str]:
    """Return this environment without what would lead to this source tree or to its data."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LONGHAND", "REDIS"))}
    return {**kept, **more}


def _built_wheel(folder: Path) -> Path:
    """Build a source archive from a copy of the sources, and a wheel from the archive."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    program = "import sys; sys.path.insert(0, 'deploy'); import build_backend; build_backend.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=source, check=True, capture_output=True)
    archive = next(folder.glob("longhand_textgen-*.tar.gz"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(archive)]
    subprocess.run(command, check=True, env={**os.environ, **_quick_compiler(folder)})
    return next(folder.glob("*.whl"))


def _quick_compiler(folder: Path) -> dict[str, str]:
    """Return an environment in which the C compiler does not optimize: nothing here is about the speed of the code."""
    if os.environ.get("CC") or not shutil.which("cc"):
        return {}
    compiler = folder / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    compiler.chmod(0o755)
    return {"CC": str(compiler)}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Return an installation that the tests of this module share."""
    return Installation(tmp_path_factory.mktemp("package"))


def test_the_version_has_one_source() -> None:
    """The changelog, the image and the manifests name the version of the code."""
    version = model.__version__
    assert re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[:1] == [version]
    assert f"ARG VERSION={version}\n" in (ROOT / "deploy/Dockerfile").read_text()
    assert f"newTag: {version}\n" in (ROOT / "deploy/kubernetes/base/kustomization.yaml").read_text()


def test_the_wheel_has_everything(installation: Installation) -> None:
    """Page, types, C source and compiled code are in it, and its name says for which machine that is."""
    installed = {str(path).partition("site-packages/")[2] for path in installation.files() - installation.before}
    sources = ["service/page/*", "model/native/src/**/*.[ch]", "service/**/*.py", "longhand/*.py", "*/py.typed"]
    sources += ["model/export/page/*.*", "model/export/hf/*.py"]
    for name in [path for pattern in sources for path in ROOT.glob(pattern)]:
        assert name.is_dir() or str(name.relative_to(ROOT)) in installed
    assert not [name for name in installed if name.startswith(("tests/", "deploy/", "bench/", "docs/"))]
    libraries = [name for name in installed if name.endswith(".so")]
    assert len(libraries) <= 1
    assert installation.wheel.name.endswith("-py3-none-any.whl") != bool(libraries)


def test_the_commands(installation: Installation, tmp_path: Path) -> None:
    """In an empty folder: version, help, train, sample, doctor; what is not a command is one line."""
    assert installation.longhand("--version", cwd=tmp_path).stdout == f"longhand {model.__version__}\n"
    help = installation.longhand("--help", cwd=tmp_path).stdout
    assert all(re.search(rf"^  {name} ", help, re.MULTILINE) for name in ("serve", "train", "info", "doctor"))
    unknown = installation.longhand("sevre", cwd=tmp_path)
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    shape = ["--n-hidden", "16", "--n-embed", "4", "--steps", "20", "--seq-length", "16", "--batch-size", "4"]
    trained = installation.longhand("train", "text.txt", *shape, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert list((tmp_path / "data" / "checkpoints").glob("*.safetensors"))
    assert installation.longhand("sample", "the", "--max-chars", "9", cwd=tmp_path).stdout.startswith("the")
    doctor = installation.longhand("doctor", cwd=tmp_path)
    assert (doctor.returncode == 0) == ("PROBLEM" not in doctor.stdout)
    assert f"{tmp_path / 'data'}; " in doctor.stdout
    assert "characters per second" in doctor.stdout


def test_it_serves_from_any_folder(installation: Installation, tmp_path: Path) -> None:
    """longhand serve beside a folder that is called `service`, with its data where LONGHAND_HOME says."""
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path / "home"
    environment = _environment(PORT=str(port), LONGHAND_HOME=str(home), HOST="127.0.0.1")
    command = [str(installation.bin / "longhand"), "serve", "--corpus", "text.txt", "--minutes", "0.05"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, "the launcher ended"
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        eventually(answers, within_s=120)
        eventually(lambda: list((home / "checkpoints").glob("*.safetensors")) != [], within_s=120)
        assert "<title>" in httpx.get(f"http://127.0.0.1:{port}/").text
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert not (tmp_path / "data").exists()


def test_uninstalling_leaves_nothing(installation: Installation, tmp_path: Path) -> None:
    """After it was used, the environment is what it was. It is installed again for the other tests."""
    assert installation.longhand("train", "--help", cwd=tmp_path).returncode == 0
    installation.uninstall()
    try:
        assert installation.files() == installation.before
    finally:
        installation.install()
