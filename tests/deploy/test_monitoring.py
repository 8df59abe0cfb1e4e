"""The files of Prometheus and Grafana are valid, and every query names metrics that the service exposes.

The first two tests need nothing. The others need Prometheus and its promtool: `make test` unpacks Debian's where there
is apt; elsewhere they are looked for on the PATH, and where there are none these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml

from tests.servers import ROOT, Service, eventually

FOLDER = ROOT / "deploy/monitoring"
UNPACKED = Path(sys.prefix) / "prometheus/usr/bin"
FROM_PROMETHEUS = {"up"}  # made by Prometheus itself


def alerts() -> list[tuple[str, str]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [(rule["alert"], rule["expr"]) for group in groups for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    """Titles and queries of the dashboard, Grafana's own variable filled in."""
    dashboard = json.loads((FOLDER / "grafana/dashboards/longhand.json").read_text())
    result = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]
    return [(title, query.replace("$__rate_interval", "1m")) for title, query in result]


def selectors(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield every series of a query: its name and the labels that it is selected by."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name or "", {matcher.name for matcher in node.matchers.matchers}
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from selectors(node.vector_selector)
    else:
        for name in ("expr", "lhs", "rhs", "args"):
            child = getattr(node, name, None)
            for item in child if isinstance(child, list) else [child] if child is not None else []:
                yield from selectors(item)


@pytest.fixture(scope="module")
def exposed(service: Service) -> set[str]:
    """The names of the samples that a real service exposes."""
    lines = service.client.get("/metrics").text.splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}


@pytest.mark.parametrize(("name", "query"), alerts() + panels())
def test_a_query_names_exposed_metrics(exposed: set[str], name: str, query: str) -> None:
    """Each metric in an alert rule or a panel is one that /metrics has."""
    metrics = {metric for metric, _ in selectors(promql_parser.parse(query))}
    assert metrics, query
    assert metrics <= exposed | FROM_PROMETHEUS


def test_every_metric_is_in_a_panel(exposed: set[str]) -> None:
    """No metric is exposed without a use: each is in a panel of the dashboard."""
    plotted = {metric for _, query in panels() for metric, _ in selectors(promql_parser.parse(query))}
    families = {name for name in exposed if name.startswith("longhand_") and not name.endswith(("_sum", "_count"))}
    assert families <= plotted


def tool(name: str) -> str:
    result = shutil.which(name, path=f"{UNPACKED}{os.pathsep}{os.environ['PATH']}")
    if result is None:
        pytest.skip(f"no {name}: neither on the PATH, nor an apt that `make test` could have it from")
    return result


@pytest.mark.parametrize("file", ["prometheus.yml", "alerts.yml"])
def test_promtool_accepts_the_files(file: str) -> None:
    kind = ("check", "config") if file == "prometheus.yml" else ("check", "rules")
    done = subprocess.run([tool("promtool"), *kind, FOLDER / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_fires_when_it_should() -> None:
    """promtool evaluates the rules on series: the expected alerts fire, and no others."""
    done = subprocess.run(
        [tool("promtool"), "test", "rules", ROOT / "tests/deploy/alerts.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Iterator[str]:
    """A real Prometheus with our configuration, except for the DNS name that only a container engine resolves."""
    binary = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "250ms"}
    config["rule_files"] = [str(FOLDER / "alerts.yml")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def ask(url: str, query: str) -> list[dict[str, Any]]:
    try:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    result: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return result


def test_prometheus_scrapes_the_service(prometheus: str, service: Service) -> None:
    """After some requests every query of the dashboard has a value; the rules are loaded and no alert fires."""
    eventually(lambda: bool(ask(prometheus, 'up{job="longhand"} == 1')))
    before = service.generate(max_chars=100)

    def written() -> float:
        result = ask(prometheus, "sum(longhand_generation_tokens_total)")
        return float(result[0]["value"][1]) if result else 0.0

    eventually(lambda: written() >= 100)
    count = written()
    service.generate(session_id=before["session_id"], max_chars=250)
    eventually(lambda: written() >= count + 250)
    eventually(lambda: all(ask(prometheus, query) for _, query in panels()))
    rules = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} == {name for name, _ in alerts()}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
