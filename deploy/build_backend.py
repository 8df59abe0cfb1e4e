"""How a wheel is built: setuptools, and the C code compiled for the machine that builds.

pyproject.toml names this module as the build backend. Where there is no C compiler, one is installed for the build as a
Python package. Where the C code cannot be compiled at all, the wheel is without it, and the service runs in torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]
_COMPILER = "ziglang==0.17.1"


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    """Return what a source archive needs to be built."""
    return build_meta.get_requires_for_build_sdist(config_settings)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """Return what a wheel needs to be built: a compiler, unless the machine has one."""
    has_compiler = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
    return build_meta.get_requires_for_build_wheel(config_settings) + ([] if has_compiler else [_COMPILER])


get_requires_for_build_editable = get_requires_for_build_wheel


class CompilingBuild(build_py):
    """Copies the packages, then compiles the C code among the copies; in place for an editable installation."""

    def run(self) -> None:
        """Run the command, into an empty folder: an earlier build there would become a part of this one."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        root = Path.cwd() if self.editable_mode else Path(self.build_lib).resolve()
        command = [sys.executable, "-m", "model.native.build", "--optional"]
        subprocess.run(command, cwd=root, check=True, env={**os.environ, "PYTHONPATH": str(root)})


class MachineWheel(bdist_wheel):
    """Names the machine in the wheel's file name when compiled code is in it, and no version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags for Python, its binary interface, and the machine."""
        compiled = list(Path(self.bdist_dir).glob("model/native/*.so"))
        self.root_is_pure = not compiled
        _, _, machine = super().get_tag()
        return "py3", "none", machine if compiled else "any"
