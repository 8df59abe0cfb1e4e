"""Which build of torch is installed: with CUDA where there is an NVIDIA GPU, else the CPU build where it can be had.

The builds have the same code for CPUs. On Linux the default build brings the CUDA libraries: about five gigabytes that
a machine without an NVIDIA GPU never uses. On macOS there is one build.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from deploy.environment import lock
from deploy.environment.pip import Pip, SetupError

CHOICES = ("auto", "cpu", "cuda")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_CUDA_GB, _CPU_GB = 8, 3  # free disk that an installation needs, with pip's temporary files


def install(pip: Pip, choice: str = "auto") -> None:
    """Install the locked version of torch unless it is there, and print which build and why.

    Args:
        pip: The environment's pip.
        choice: One of CHOICES.

    Raises:
        SetupError: It cannot be installed, or the CPU build was demanded and cannot be had.
    """
    version = locked_version()
    if pip.installed("torch").partition("+")[0] == version:
        return
    build, reason = _for_this_machine() if choice == "auto" else (choice, f"--torch {choice}")
    if build == "cpu":
        cpu_version = f"{version}+cpu"
        source = _cpu_source(pip, cpu_version)
        if source is not None:
            _require_free_disk(pip, _CPU_GB)
            _say(f"torch {cpu_version}: the CPU build ({reason}); about 200 MB to download, 1 GB on disk")
            pip.install(
                "--no-deps", *source, f"torch=={cpu_version}"
            )  # each index has its own files: no hash is locked
            return
        if choice == "cpu":
            raise SetupError(f"torch {cpu_version} was not found: set TORCH_INDEX to an index or a folder that has it")
        reason += f", but {os.environ.get('TORCH_INDEX', CPU_INDEX)} did not offer the CPU build"
    if platform.system() == "Linux":
        _require_free_disk(pip, _CUDA_GB)
        _say(f"torch {version}: the build with CUDA ({reason}); about 2.5 GB to download, 5 GB on disk")
    else:
        _say(f"torch {version}: {reason}")
    pip.install("--no-deps", "--require-hashes", "--requirement", str(lock.path("torch")))


def locked_version() -> str:
    """Return the version of torch in the lock."""
    return next(
        entry.removeprefix("torch==").split()[0]
        for entry in lock.packages(lock.path("torch").read_text())
        if entry.startswith("torch==")
    )


def _for_this_machine() -> tuple[str, str]:
    """Return the build for this machine, and the reason."""
    if platform.system() != "Linux":
        return "cuda", f"the only build for {platform.system()}"
    if _has_nvidia_gpu():
        return "cuda", "this machine has an NVIDIA GPU"
    return "cpu", "this machine has no NVIDIA GPU"


def _has_nvidia_gpu() -> bool:
    if Path("/proc/driver/nvidia/version").exists():
        return True
    program = shutil.which("nvidia-smi") or "/usr/lib/wsl/lib/nvidia-smi"  # WSL does not put it on PATH
    try:
        return b"GPU" in subprocess.run([program, "-L"], capture_output=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False


def _cpu_source(pip: Pip, version: str) -> list[str] | None:
    """Return pip's options for a source that has the CPU build: TORCH_INDEX, what pip is configured with, PyTorch's.

    An index takes the place of pip's own: of two that compete, the one with the higher version would win.
    """
    if index := os.environ.get("TORCH_INDEX"):
        sources = [["--index-url" if "://" in index else "--find-links", index]]
    else:
        sources = [[], ["--index-url", CPU_INDEX]]
    return next((source for source in sources if version in pip.versions("torch", *source)), None)


def _require_free_disk(pip: Pip, needed_gb: int) -> None:
    folder = pip.python.parent.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise SetupError(f"{folder}: {free:.1f} GB of disk are free, and installing torch needs {needed_gb} GB")


def gigabytes(folder: Path) -> str:
    """Return the size of a folder in words."""
    size = sum(path.lstat().st_size for path in folder.rglob("*"))
    return f"{size / 1e9:.1f} GB"


def _say(text: str) -> None:
    print(f"setup   {text}", flush=True)
