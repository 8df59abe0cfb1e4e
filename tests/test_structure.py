"""The structure is a claim too: which way imports go, and what an import may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

MODULES = sorted([*ROOT.glob("model/**/*.py"), *ROOT.glob("service/**/*.py")])
FLASK = {"service/app.py"}
PROGRAMS = ("__main__", "gunicorn_config")  # run, and not imported: a server's configuration reads the settings
REDIS = ("service/app.py", "service/store/", "service/jobs/")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    """routes -> generation -> engine, store -> model; flask and redis only where they are named."""
    name = str(path.relative_to(ROOT))
    found = imports(path)
    roots = {f.split(".")[0] for f in found}
    if name.startswith("model/"):
        assert not roots & {"service", "flask", "redis", "gunicorn", "pydantic"}
        assert "threading" not in roots or name.startswith("model/stepper/cpu/")  # a lock around native code
    if name.startswith("service/engine/"):
        assert not {f for f in found if f.startswith(("service.routes", "service.store", "service.generation"))}
        assert "torch" not in roots
    if name.startswith("service/store/"):
        assert not {f for f in found if f.startswith(("service.routes", "service.engine", "service.generation"))}
    if not (name in FLASK or name.startswith("service/routes/")):
        assert "flask" not in roots
    if not name.startswith(REDIS):
        assert not roots & {"redis", "rq"}


def test_nothing_starts_at_import() -> None:
    """Importing every module starts no thread, opens no connection and reads no setting."""
    names = [str(p.relative_to(ROOT)).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for p in MODULES]
    program = f"""
import socket, threading, importlib
def refuse(*a, **k): raise AssertionError("a connection at import")
socket.socket.connect = refuse
before = threading.active_count()
for name in {[n for n in names if not n.endswith(PROGRAMS)]!r}:
    importlib.import_module(name)
assert threading.active_count() == before, threading.enumerate()
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, env={"PORT": "not a number"})


def test_a_worker_forks_without_torch() -> None:
    """The line and its worker load no torch: a process that used its threads could not fork safely."""
    program = "import sys, service.jobs.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
