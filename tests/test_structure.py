"""The structure is a claim too: which way imports go, and what an import may not do."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

MODULES = sorted(path for package in ("longhand", "model", "service") for path in ROOT.glob(f"{package}/**/*.py"))
FLASK = {"service/app.py"}
PROGRAMS = ("__main__", "gunicorn_config")  # run, and not imported: a server's configuration reads the settings
REDIS = ("service/app.py", "service/redis_url.py", "service/store/", "service/jobs/")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    return names | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_library_is_used_where_it_is_named(path: Path) -> None:
    """Flask and Redis are used only by the modules that are named here; the engine holds no tensor."""
    name = str(path.relative_to(ROOT))
    result = imports(path)
    roots = {f.split(".")[0] for f in result}
    if name.startswith("model/"):
        assert not roots & {"flask", "redis", "gunicorn", "pydantic"}
        assert "threading" not in roots or name.startswith(("model/stepper/cpu/", "model/stepper/cuda/"))
    if name.startswith("service/engine/"):
        assert "torch" not in roots
    if not (name in FLASK or name.startswith("service/routes/")):
        assert "flask" not in roots
    if not name.startswith(REDIS):
        assert not roots & {"redis", "rq"}


LINT_IMPORTS = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]


def test_imports_go_one_way() -> None:
    """The contracts of .importlinter hold, through any chain of imports."""
    done = subprocess.run([*LINT_IMPORTS, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("longhand/core.py", "import service.schemas"),
        ("longhand/schemas.py", "import torch"),
        ("model/text/vocab.py", "import service.settings"),
        ("model/network/state.py", "from model.stepper import generate"),
        ("service/engine/scheduler.py", "from service.routes import sse"),
        ("service/store/redis.py", "import service.generation.plan"),
    ],
)
def test_an_import_that_breaks_a_contract_is_found(tmp_path: Path, module: str, line: str) -> None:
    """The contracts can fail: each of these imports, added to a copy, breaks one."""
    for folder in ("longhand", "model", "service"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "page", "__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = subprocess.run([*LINT_IMPORTS, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert module.removesuffix(".py").replace("/", ".") in done.stdout


SOURCE_FOLDERS = {
    path.parent for path in [*MODULES, *(ROOT / "model").rglob("*.[ch]"), *(ROOT / "model").rglob("*.cu")]
}


@pytest.mark.parametrize("folder", sorted(SOURCE_FOLDERS), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_folder_can_be_read_at_a_glance(folder: Path) -> None:
    """At most nine files beside __init__, but for the routes: a newcomer chooses among few."""
    files = [
        path for path in folder.iterdir() if path.suffix in {".py", ".c", ".h", ".cu"} and path.name != "__init__.py"
    ]
    assert len(files) <= 9 or folder == ROOT / "service/routes"


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


def test_the_client_loads_little() -> None:
    """A program that only calls a server loads no torch, no Flask, and nothing of the service."""
    loaded = "{'torch', 'numpy', 'flask', 'redis', 'gunicorn', 'model', 'service'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import longhand, sys; assert not {loaded}, {loaded}"], cwd=ROOT, check=True)


def test_a_worker_forks_without_torch() -> None:
    """The line and its worker load no torch: a process that used its threads could not fork safely."""
    program = "import sys, service.jobs.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
