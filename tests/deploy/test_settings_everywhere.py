"""The settings are the same in service/settings.py, .env.example, compose, the image and the manifests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, read_settings
from tests.deploy.files import COMPOSE, KUSTOMIZATIONS, OURS, compose, containers, environment, example, rendered
from tests.servers import ROOT

SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}


def written(default: Any) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    return "" if default in ("", (), None) else str(default)


def test_the_example_has_every_setting_with_its_default_and_description() -> None:
    """The descriptions are those of `python -m service --help`."""
    result = example()
    for name, field in SETTINGS.items():
        assert result[name] == (written(field.default), field.description)


def test_compose_passes_every_setting() -> None:
    """Each is passed from .env, where empty means the default, or fixed to the value that containers need."""
    passed = environment(compose(ROOT / "docker-compose.yml")["services"]["api"])
    assert set(passed) == set(SETTINGS)
    urls = {name: re.sub(r"\$\{REDIS_PASSWORD[^}]*\}", "password", v) for name, v in passed.items() if "REDIS" in name}
    for name, value in {**passed, **urls}.items():
        assert value == f"${{{name}:-}}" or "$" not in value, f"{name}: {value}"
    fixed = {name.lower(): value for name, value in {**passed, **urls}.items() if "$" not in value}
    Settings.model_validate(fixed)


@pytest.mark.parametrize("path", COMPOSE, ids=lambda p: p.name)
def test_compose_reads_only_variables_of_the_example(path: Path) -> None:
    """Every variable is in .env.example, and the environment of our containers consists of settings."""
    read = set(re.findall(r"\$\{([A-Z_]+)", path.read_text()))
    assert read <= set(example())
    for name, service in compose(path)["services"].items():
        if name in OURS:
            assert set(environment(service)) <= set(SETTINGS)


def test_every_variable_of_the_example_is_read() -> None:
    """Those that are no settings are read by a compose file."""
    read = {name for path in COMPOSE for name in re.findall(r"\$\{([A-Z_]+)", path.read_text())}
    assert set(example()) - set(SETTINGS) <= read


def test_the_image_sets_known_settings() -> None:
    """Apart from Python's variables the image's environment consists of valid settings."""
    lines = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    final = lines[next(i for i, line in enumerate(lines) if re.match("FROM .* AS user$", line)) :]
    result = dict(pair.split("=", 1) for line in final if line.startswith("ENV ") for pair in line.split()[1:])
    ours = {k: v for k, v in result.items() if not k.startswith("PYTHON") and k not in ("PATH", "MPLCONFIGDIR")}
    assert ours
    assert set(ours) <= set(SETTINGS)
    Settings.model_validate({k.lower(): v for k, v in ours.items()})


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda p: p.name)
def test_the_manifests_set_known_settings(folder: Path) -> None:
    """ConfigMap, variables and the keys of the Secret are valid settings."""
    objects = rendered(folder)
    maps = {item["metadata"]["name"]: item["data"] for item in objects if item["kind"] == "ConfigMap"}
    assert maps
    for data in maps.values():
        assert set(data) <= set(SETTINGS)
        Settings.model_validate({k.lower(): v for k, v in data.items()})
    for container in containers(objects):
        for source in container["envFrom"]:
            assert source["configMapRef"]["name"] in maps
        for variable in container["env"]:
            assert variable["name"] in SETTINGS
            assert variable["valueFrom"]["secretKeyRef"]["key"] == variable["name"]  # a secret is never in a manifest


def test_a_stopped_container_has_time_to_drain() -> None:
    """Compose, Kubernetes and gunicorn wait longer than the drain; the proxy notices it before requests are refused."""
    api = compose(ROOT / "docker-compose.yml")["services"]["api"]
    scaled = compose(ROOT / "deploy/compose.scale.yml")["services"]["api"]["environment"]
    notice = float(re.fullmatch(r"\$\{DRAIN_NOTICE_S:-(\d+)\}", scaled["DRAIN_NOTICE_S"])[1])  # type: ignore[index]
    margin = 10  # service/server/gunicorn_config.py
    assert float(api["stop_grace_period"].removesuffix("s")) > notice + read_settings().drain_timeout_s + margin
    seen_after = 1 + 2 * 0.25  # deploy/haproxy.cfg: inter, then fall - 1 times fastinter
    assert "check inter 1s fastinter 250ms downinter 500ms fall 3" in (ROOT / "deploy/haproxy.cfg").read_text()
    assert notice > seen_after
    base = rendered(ROOT / "deploy/kubernetes/base")
    data = next(item["data"] for item in base if item["kind"] == "ConfigMap")
    pod = next(e for e in base if e["metadata"]["name"] == "longhand-api" and e["kind"] == "Deployment")["spec"]
    pod = pod["template"]["spec"]
    before = float(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + float(data["DRAIN_TIMEOUT_S"]) + margin


def test_yaml_is_read_as_it_is_written() -> None:
    """No file names a key twice: YAML would silently take the last."""
    for path in [*COMPOSE, *ROOT.glob("deploy/**/*.y*ml")]:
        for document in yaml.compose_all(path.read_text()):
            _no_key_twice(document, path)


def _no_key_twice(node: yaml.Node | None, path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        assert len(keys) == len(set(keys)), f"{path}: {keys}"
    for child in node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else ():
        for item in child if isinstance(child, tuple) else (child,):
            _no_key_twice(item, path)
