"""The manifests, as kubectl would send them, against the schemas of Kubernetes' own API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.files import KUSTOMIZATIONS, containers, rendered
from tests.servers import ROOT

VERSION = "1.37"
JOB = ROOT / "deploy/kubernetes/gpu/train-job.yaml"


def every() -> list[tuple[str, dict[str, Any]]]:
    """Return all objects: those of each kustomization, and the job that is applied by hand."""
    result = [(folder.name, item) for folder in KUSTOMIZATIONS for item in rendered(folder)]
    result += [("job", item) for item in yaml.safe_load_all(JOB.read_text())]
    return result


@pytest.fixture(scope="module")
def objects() -> list[tuple[str, dict[str, Any]]]:
    return every()


def test_every_object_is_valid(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """Validation is strict: a field that the API does not know is an error."""
    assert {name for name, _ in objects} == {"base", "gpu", "autoscaling", "job"}
    for name, item in objects:
        assert kubernetes_validate.validate(item, VERSION, strict=True) == VERSION, name


def test_a_rollout_needs_no_gpu_more(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """With GPUs no new pod waits for one beside the old ones; without, it is ready before an old one ends."""
    surge = {
        (name, item["metadata"]["name"]): item["spec"]["strategy"].get("rollingUpdate", {}).get("maxSurge", 0)
        for name, item in objects
        if item["kind"] == "Deployment"
    }
    assert {surge[key] for key in surge if key[0] == "gpu"} == {0}
    assert surge["base", "longhand-api"] == 1


def test_a_wrong_field_would_be_seen(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """The validation above can fail."""
    deployment = next(item for _, item in objects if item["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**deployment, "replica": 2}, VERSION, strict=True)


def test_names_that_are_referred_to_exist(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """Selectors match pods; volume claims and scale targets exist. The schema does not check that."""
    for folder in KUSTOMIZATIONS:
        ours = [item for name, item in objects if name == folder.name]
        by_hand = [item for name, item in objects if name == "job"]
        pods = [item["spec"]["template"] for item in [*ours, *by_hand] if item["kind"] in ("Deployment", "Job")]
        labels = [pod["metadata"]["labels"] for pod in pods]
        claims = {item["metadata"]["name"] for item in ours if item["kind"] == "PersistentVolumeClaim"}
        for item in ours:
            spec = item.get("spec", {})
            selector = spec.get("podSelector") or spec.get("selector") or {}
            selected = selector.get("matchLabels", selector)
            if item["kind"] in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"):
                assert selected
                assert [result for result in labels if selected.items() <= result.items()], item["metadata"]["name"]
            if item["kind"] == "HorizontalPodAutoscaler":
                names = {e["metadata"]["name"] for e in ours if e["kind"] == spec["scaleTargetRef"]["kind"]}
                assert spec["scaleTargetRef"]["name"] in names
        for pod in pods:
            for volume in pod["spec"]["volumes"]:
                assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}


def test_every_pod_reaches_and_is_reached_by_few(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """A policy for each kind of pod, also for the training that is applied by hand; every peer and port is named."""
    policies = [item for _, item in objects if item["kind"] == "NetworkPolicy"]
    for name, item in objects:
        if item["kind"] in ("Deployment", "Job"):
            labels = item["spec"]["template"]["metadata"]["labels"].items()
            of_pod = [p["spec"] for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= labels]
            assert of_pod, f"{name}: {item['metadata']} has no policy"
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"][direction]:
                assert rule[peers]
                assert rule["ports"]


def test_every_container_is_restricted(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """No root user, no capabilities, a read-only root, limited memory, no token of the cluster."""
    everything = [item for _, item in objects]
    assert len(containers(everything)) == 7
    for container in containers(everything):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
    for item in everything:
        if item["kind"] in ("Deployment", "Job"):
            pod = item["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["automountServiceAccountToken"] is False


def test_the_autoscaler_sets_the_replicas(objects: list[tuple[str, dict[str, Any]]]) -> None:
    """Its overlay sets no number of api pods, and its metrics are those of the adapter's rule."""
    ours = [item for name, item in objects if name == "autoscaling"]
    api = next(e for e in ours if e["kind"] == "Deployment" and e["metadata"]["name"] == "longhand-api")
    assert "replicas" not in api["spec"]
    scaler = next(item for item in ours if item["kind"] == "HorizontalPodAutoscaler")
    rule: list[dict[str, Any]] = yaml.safe_load(
        Path(ROOT / "deploy/kubernetes/autoscaling/adapter-rule.yaml").read_text()
    )
    for metric in scaler["spec"]["metrics"]:
        name = metric["pods"]["metric"]["name"].removeprefix("longhand_")
        assert name in rule[0]["seriesQuery"]
