"""The compose files and the Dockerfile, as far as can be told without an engine; tests/e2e has the rest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.server.process_limit import needed_threads
from service.settings import Settings
from tests.deploy.files import COMPOSE, KUSTOMIZATIONS, OURS, compose, containers, environment, rendered
from tests.servers import ROOT


def tool(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """A program that came with tests/requirements.txt."""
    return subprocess.run([Path(sys.executable).with_name(name), *args], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda p: p.name)
def test_the_files_match_compose_s_schema(path: Path, tmp_path: Path) -> None:
    """Against Compose's own schema. Its tag !reset is no part of that: the value it removes is left out."""
    plain = tmp_path / path.name
    plain.write_text("".join(line for line in path.read_text().splitlines(True) if "!reset" not in line))
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain)
    assert done.returncode == 0, done.stdout


def test_a_wrong_key_would_be_seen(tmp_path: Path) -> None:
    """The schema is strict: the test above can fail."""
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", wrong).returncode == 1


def services() -> list[tuple[str, dict[str, Any]]]:
    result = [(f"{path.name}:{name}", s) for path in COMPOSE for name, s in compose(path)["services"].items()]
    return [(name, s) for name, s in result if "image" in s and "gpu" not in name]


@pytest.mark.parametrize(("name", "service"), services(), ids=[name for name, _ in services()])
def test_every_container_is_restricted(name: str, service: dict[str, Any]) -> None:
    """Limited memory, no new privileges; ours: a read-only root, no capabilities, and a healthy Redis first."""
    assert "mem_limit" in service
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if name.split(":")[1] in OURS:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True
        assert service["depends_on"]["redis"]["condition"] == "service_healthy"


def test_ports_are_published_on_loopback() -> None:
    """Unless BIND says otherwise; what has no keys stays on loopback even then, and Redis's port is not published."""
    for path in COMPOSE:
        for name, service in compose(path)["services"].items():
            address = "${BIND:-127.0.0.1}:" if name in ("api", "proxy") else "127.0.0.1:"
            for port in service.get("ports") or []:
                assert port.startswith(address), f"{path.name}: {name}: {port}"
    assert "ports" not in compose(ROOT / "docker-compose.yml")["services"]["redis"]


def test_keys_and_passwords_reach_only_who_needs_them() -> None:
    """The api has the keys, the trainer does not; Redis has a password that nobody can forget to set."""
    services = compose(ROOT / "docker-compose.yml")["services"]
    for name in ("trainer", "sweep", "redis"):
        assert not {"ADMIN_KEY", "API_KEYS"} & set(environment(services[name])), name
    assert "${REDIS_PASSWORD:?" in environment(services["api"])["REDIS_URL"]
    assert environment(services["redis"]) == {"REDISCLI_AUTH": "${REDIS_PASSWORD}"}
    assert 'requirepass $$REDISCLI_AUTH"' in services["redis"]["command"][-1]
    for container in containers([element for folder in KUSTOMIZATIONS for element in rendered(folder)]):
        if container["name"] != "api":
            assert not {"ADMIN_KEY", "API_KEYS"} & {variable["name"] for variable in container["env"]}


def test_images_are_named_by_whole_versions() -> None:
    """No tag that moves with each release: major.minor.patch, and a variable that takes a digest."""
    images = [s["image"] for path in COMPOSE for s in compose(path)["services"].values() if "image" in s]
    others = [image for image in images if not image.startswith("${LONGHAND_")]
    assert len(others) == 4
    for image in others:
        assert re.fullmatch(r"\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?\}", image), image
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-[a-z]+$", dockerfile, re.MULTILINE)


def test_a_container_may_have_the_threads_that_it_needs() -> None:
    """Eight workers with the default slots on a machine of 64 cores."""
    limit = compose(ROOT / "docker-compose.yml")["services"]["api"]["pids_limit"]
    default = int(re.fullmatch(r"\$\{PIDS_LIMIT:-(\d+)\}", limit)[1])  # type: ignore[index]
    assert default >= needed_threads(Settings.model_validate({"workers": 8}), cores=64)


def test_files_that_are_mounted_exist() -> None:
    """A path that does not exist would become an empty folder in the container."""
    mounted = [v for path in COMPOSE for s in compose(path)["services"].values() for v in s.get("volumes") or []]
    files = [v.split(":")[0] for v in mounted if v.startswith("./")]
    assert files
    assert not [f for f in files if not (ROOT / f).exists()]


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds nothing, and no rule is switched off."""
    done = tool("hadolint", "deploy/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_copies_is_sent_to_the_engine() -> None:
    """.dockerignore lets through what COPY names, and nothing that is yours: data, git, environments."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = (ROOT / "deploy/Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / path).exists() for path in copied)
