"""Readers of the files in deploy/."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.servers import ROOT

COMPOSE = [ROOT / "docker-compose.yml", *sorted(ROOT.glob("deploy/compose.*.yml"))]
KUSTOMIZATIONS = sorted(path.parent for path in ROOT.glob("deploy/kubernetes/*/kustomization.yaml"))
OURS = ("api", "trainer", "sweep")  # the services that run Longhand's image


class _Loader(yaml.SafeLoader):
    """YAML with Compose's tag !reset, which removes a value when overlays are merged."""


_Loader.add_constructor("!reset", lambda loader, node: None)


def compose(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(path.read_text(), _Loader)
    return document


def environment(service: dict[str, Any]) -> dict[str, str]:
    variables: dict[str, str] = service.get("environment") or {}
    return variables


def example() -> dict[str, tuple[str, str]]:
    """.env.example: name -> (value, the reason above it)."""
    result: dict[str, tuple[str, str]] = {}
    reason = ""
    for line in (ROOT / ".env.example").read_text().splitlines():
        setting = re.fullmatch(r"#([A-Z_]+)=(.*)", line)
        if setting is not None:
            assert setting[1] not in result, f"{setting[1]} stands there twice"
            result[setting[1]] = (setting[2], reason)
        elif line.startswith("# "):
            reason = line[2:]
    return result


def rendered(folder: Path) -> list[dict[str, Any]]:
    """Return the objects of a kustomization, as kubectl would send them."""
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pods = [o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("Deployment", "Job")]
    return [container for pod in pods for container in pod["containers"]]
