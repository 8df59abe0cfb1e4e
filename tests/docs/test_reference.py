"""The reference is that of the code, and the documents refer to files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"})
PRINT_ROUTES = r"""
import re
from service.app import create_app
for rule in create_app().url_map.iter_rules():
    for method in rule.methods - {"HEAD", "OPTIONS"}:
        print(method, re.sub(r"<(?:[^<>]*:)?([^<>:]+)>", r"{\1}", rule.rule))
"""


def test_the_generated_tables_are_current() -> None:
    """docs/generate.py would change nothing."""
    check = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_every_address_is_documented(tmp_path: Path) -> None:
    """The headings of docs/api.md are the addresses of the application."""
    environment = {**os.environ, "CHECKPOINT_DIR": str(tmp_path), "CORPORA_DIR": str(tmp_path), "REDIS_URL": ""}
    output = subprocess.run(
        [sys.executable, "-c", PRINT_ROUTES], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    documented = set(re.findall(r"^### `(.+)`$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE))
    assert documented == set(output.splitlines()) - {"GET /page/{file}"}


def test_the_overview_has_every_address() -> None:
    """Its first column names the addresses of the headings; of several methods of one address, the last has it."""
    reference = (ROOT / "docs" / "api.md").read_text()
    table = reference.split("## Overview\n")[1].split("\n\n")[0]
    listed, methods = set(), []
    for code in re.findall(r"`([A-Z]+(?: /[^`]*)?)`", "\n".join(row.split("|")[1] for row in table.splitlines())):
        method, _, address = code.partition(" ")
        methods.append(method)
        if address:
            listed |= {f"{method} {re.sub('{.*?}', '{}', address)}" for method in methods}
            methods = []
    headings = re.findall(r"^### `(.+)`$", reference, re.MULTILINE)
    assert listed == {re.sub("{.*?}", "{}", heading) for heading in headings}


def test_the_length_of_the_program_that_loads_a_folder_is_true() -> None:
    """docs/export.md says it."""
    message = re.search(r"`load_model\.py` \| (\d+) lines", (ROOT / "docs" / "export.md").read_text())
    assert message is not None
    assert int(message[1]) == len((ROOT / "model" / "export" / "hf" / "load_model.py").read_text().splitlines())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A relative link names a file, and its fragment a heading of it."""
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (fragment and fragment not in anchors(file)):
            missing.append(target)
    assert missing == []


def anchors(path: Path) -> set[str]:
    """The fragments of a document's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    """A path in code marks, like `model/network/gates.py`, exists in the repository."""
    pattern = r"`((?:model|service|tests|bench|deploy|docs)/[\w./-]*\w/?)`"
    missing = [name for name in re.findall(pattern, path.read_text()) if not (ROOT / name).exists()]
    assert missing == []


def test_the_tree_is_true() -> None:
    """Every folder and file in the tree of docs/architecture.md exists, and no folder of the sources is left out."""
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The tree\n```\n")[1].split("```")[0]
    top, missing, named = ROOT, [], set()
    for line in tree.splitlines():
        indent, entries = re.fullmatch(r"( *)(.*)", line).groups()  # type: ignore[union-attr]
        names = re.findall(r"[\w./-]+", entries[: 23 - len(indent)])
        folder = ROOT if not indent else top
        for name in names:
            missing += [name] if not (folder / name).exists() else []
            named.add(folder / name)
        if not indent:
            top = ROOT / names[0]
        here = folder / names[0] if names[0].endswith("/") else folder
        files = re.findall(r"[\w./]+\.(?:py|c|h|cfg)\b", entries[23 - len(indent) :])
        missing += [f"{here.name}/{file}" for file in files if not (here / file).exists()]
    assert missing == []
    folders = {path for top in ("model", "service") for path in (ROOT / top).iterdir() if path.is_dir()}
    parents = {parent for path in named for parent in (path, *path.parents)}
    assert {path.name for path in folders if path.name != "__pycache__"} <= {path.name for path in parents}
