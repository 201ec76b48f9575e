"""The manifests for Kubernetes: fields that exist, pods that are not privileged, references with a source."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra import kuberay_fields
from tests.infra.kuberay_fields import KINDS, REQUIRED, REQUIRED_IN_GROUP, mistakes
from tests.infra.manifests import (
    INFRA,
    OVERLAYS,
    base_objects,
    cluster_spec,
    documented_variables,
    pod_templates,
    ray_object,
    run_tool,
    tool,
)

KUBERNETES = "1.31"
PODS = [
    pytest.param(template, id=f"{overlay}-{name}")
    for overlay in OVERLAYS
    for name, template in pod_templates(ray_object(overlay))
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_field_of_kuberay_is_in_the_table_and_what_is_required_is_there(overlay: str) -> None:
    manifest = ray_object(overlay)
    kind = manifest["kind"]
    assert manifest["apiVersion"] == "ray.io/v1"
    assert mistakes(manifest["spec"], KINDS[kind], "spec") == []
    assert set(REQUIRED[kind]) <= set(manifest["spec"])
    for group in cluster_spec(manifest)["workerGroupSpecs"]:
        assert set(REQUIRED_IN_GROUP) <= set(group), "replicas are stated everywhere, with their range"


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"backoffLimits": 3}, "spec.backoffLimits is not in the table"),
        ({"backoffLimit": "3"}, "spec.backoffLimit is '3', expected int"),
        ({"submissionMode": "Job"}, "spec.submissionMode is 'Job', expected one of"),
        (
            {"rayClusterSpec": {"workerGroupSpecs": [{"rayStartParams": {"num-cpus": 0}}]}},
            "num-cpus is 0, no string",
        ),
    ],
)
def test_the_table_refuses_what_kuberay_would(spec: dict[str, Any], line: str) -> None:
    (found,) = mistakes(spec, KINDS["RayJob"], "spec")
    assert line in found


@pytest.mark.parametrize("overlay", ["pipeline", "restore"])
def test_a_job_is_repeated_ended_and_removed(overlay: str) -> None:
    spec = ray_object(overlay)["spec"]
    assert spec["backoffLimit"] >= 3, "a failed attempt continues"
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] >= 24 * 3600


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_wants_a_token_and_its_head_does_no_work(overlay: str) -> None:
    spec = cluster_spec(ray_object(overlay))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert not spec["enableInTreeAutoscaling"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_workers_tolerate_spot_machines_and_the_head_does_not(overlay: str) -> None:
    spec = cluster_spec(ray_object(overlay))
    assert "tolerations" not in spec["headGroupSpec"]["template"]["spec"]
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        keys = {toleration["key"] for toleration in pod["tolerations"]}
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= keys
        has_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert has_gpu == ("nvidia.com/gpu" in keys)


def test_restoring_has_a_group_with_gpus_and_one_without() -> None:
    groups = cluster_spec(ray_object("restore"))["workerGroupSpecs"]
    assert [group["rayStartParams"]["num-gpus"] for group in groups] == ["0", "1"]


@pytest.mark.parametrize("template", PODS)
def test_a_pod_keeps_to_the_restricted_profile(template: dict[str, Any]) -> None:
    pod = template["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["serviceAccountName"] == "diffbfr"
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]


@pytest.mark.parametrize("template", PODS)
def test_every_reference_of_a_pod_has_its_source(template: dict[str, Any], tmp_path: Path) -> None:
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in base_objects()}
    generated = yaml.safe_load((INFRA / "kuberay/secrets/kustomization.yaml").read_text())
    secrets = {
        secret["name"]: {file.partition("=")[0] for file in secret["files"]}
        for secret in generated["secretGenerator"]
    }
    pod = template["spec"]
    assert ("ServiceAccount", pod["serviceAccountName"]) in names
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for volume in volumes.values():
        if "secret" in volume:
            assert volume["secret"]["secretName"] in secrets
    for container in pod["containers"]:
        for source in container.get("envFrom", []):
            assert ("ConfigMap", source["configMapRef"]["name"]) in names
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(volumes)


def test_the_credentials_are_read_where_they_are_mounted() -> None:
    (settings,) = (thing["data"] for thing in base_objects() if thing["kind"] == "ConfigMap")
    folder, _, name = settings["AWS_SHARED_CREDENTIALS_FILE"].rpartition("/")
    generated = yaml.safe_load((INFRA / "kuberay/secrets/kustomization.yaml").read_text())
    assert generated["secretGenerator"][0]["files"] == [f"{name}=credentials.env"]
    for overlay in OVERLAYS:
        for where, template in pod_templates(ray_object(overlay)):
            if where != "submitter":
                mounts = template["spec"]["containers"][0]["volumeMounts"]
                assert folder in {mount["mountPath"] for mount in mounts}


def test_the_settings_are_documented_variables() -> None:
    (settings,) = (thing["data"] for thing in base_objects() if thing["kind"] == "ConfigMap")
    assert set(settings) <= documented_variables()
    assert all(isinstance(value, str) for value in settings.values()), "Kubernetes takes strings only"


def test_the_network_policy_holds_for_every_pod_of_ray() -> None:
    (policy,) = (thing["spec"] for thing in base_objects() if thing["kind"] == "NetworkPolicy")
    (selected,) = policy["podSelector"]["matchLabels"].items()
    for overlay in OVERLAYS:
        for name, template in pod_templates(ray_object(overlay)):
            assert selected in template["metadata"]["labels"].items(), f"{overlay} {name}"
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule.get("from") for rule in policy["ingress"]), "a rule without `from` lets everybody in"
    assert all(rule.get("to") for rule in policy["egress"])


@pytest.mark.parametrize("overlay", [*OVERLAYS, "secrets"])
def test_kubectl_builds_it(overlay: str, tmp_path: Path) -> None:
    objects = build(overlay, tmp_path)
    assert objects
    for thing in objects:
        if thing["kind"] != "Namespace":
            assert thing["metadata"]["namespace"] == "diffbfr"


def build(overlay: str, folder: Path) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would send."""
    kubectl = tool("kubectl")
    shutil.copytree(INFRA / "kuberay", folder / "kuberay")
    secrets = folder / "kuberay/secrets"
    (secrets / "credentials.env").write_text((secrets / "credentials.env.example").read_text())
    place = secrets if overlay == "secrets" else folder / "kuberay/overlays" / overlay
    return list(yaml.safe_load_all(run_tool(kubectl, "kustomize", str(place))))


@pytest.mark.slow
def test_kubernetes_takes_the_core_kinds_and_the_pods() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for thing in base_objects():
        validator.validate(thing, KUBERNETES, strict=True)
    for overlay in OVERLAYS:
        for name, template in pod_templates(ray_object(overlay)):
            pod = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": name},
                "template": template,
            }
            validator.validate(pod, KUBERNETES, strict=True)


def test_the_operator_version_is_written_where_it_is_needed() -> None:
    for overlay in ("pipeline",):
        text = (INFRA / "kuberay/overlays" / overlay / "rayjob.yaml").read_text()
        assert f"operator {kuberay_fields.MINIMUM_OPERATOR} or later" in text
