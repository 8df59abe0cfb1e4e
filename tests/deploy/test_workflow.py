"""The workflow of the public checks follows its schema."""

from __future__ import annotations

import subprocess
import sys

from tests.servers import ROOT


def test_the_workflow_follows_its_schema() -> None:
    """check-jsonschema accepts every file of .github/workflows."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    files = [str(path) for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))]
    check = subprocess.run([*command, *files], capture_output=True, text=True)
    assert files
    assert check.returncode == 0, check.stdout + check.stderr
