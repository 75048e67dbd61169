"""The manifests without a cluster: in step with the code, valid for old and new Kubernetes, strict about security."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from k8s.render import HEADER, bundle, launch, recipe, rendered
from k8s.scan import CUSTOM, OVERLAYS, as_pods, objects, templates
from workflows.launch.manifest import pytorchjob, rayjob

K8S = Path(__file__).resolve().parents[2] / "k8s"
VERSIONS = ("1.27", "1.33", "1.36")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def everything() -> dict[str, list[dict[str, Any]]]:
    """The objects of each overlay."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return {name: objects(name) for name in OVERLAYS}


def test_generated_files_are_in_step_with_the_code() -> None:
    for path, text in rendered().items():
        assert (K8S / path).read_text() == text, f"{path} is old; run: python -m k8s.render"


@needs_kubectl
def test_the_single_file_is_the_base() -> None:
    assert (K8S / "unic-job.yaml").read_text() == HEADER + bundle(K8S / "base"), "run: python -m k8s.render"


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(everything: dict[str, list[dict[str, Any]]], version: str) -> None:
    seen = set()
    for found in everything.values():
        for item in found:
            if item["kind"] not in CUSTOM:
                kubernetes_validate.validate(item, version, strict=True)
            seen.add(item["kind"])
            for pod in as_pods(item):
                kubernetes_validate.validate(pod, version, strict=True)
    assert seen >= CUSTOM | {"NetworkPolicy", "Role", "PodDisruptionBudget", "PriorityClass", "Deployment"}


def test_every_pod_meets_the_restricted_standard(everything: dict[str, list[dict[str, Any]]]) -> None:
    count = 0
    for found in everything.values():
        for template in (t for item in found for t in templates(item)):
            spec = template["spec"]
            assert spec["automountServiceAccountToken"] is False
            security = spec["securityContext"]
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] >= 10000
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not any("hostPath" in volume for volume in spec["volumes"])
            for container in spec["containers"]:
                own = container["securityContext"]
                assert own["allowPrivilegeEscalation"] is False
                assert own["readOnlyRootFilesystem"] is True
                assert own["capabilities"] == {"drop": ["ALL"]}
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
                assert not container["image"].endswith(":latest")
                assert ":" in container["image"]
                count += 1
    assert count == 9


def test_the_namespace_enforces_the_restricted_standard(everything: dict[str, list[dict[str, Any]]]) -> None:
    for found in everything.values():
        (namespace,) = (item for item in found if item["kind"] == "Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        names = {item["metadata"]["name"] for item in found if item["kind"] == "NetworkPolicy"}
        assert "unic-default-deny" in names


def test_no_secret_is_in_a_manifest(everything: dict[str, list[dict[str, Any]]]) -> None:
    assert not any(item["kind"] == "Secret" for found in everything.values() for item in found)


def test_launcher_can_do_what_launching_takes_and_no_more(everything: dict[str, list[dict[str, Any]]]) -> None:
    (role,) = (item for item in everything["dev"] if item["kind"] == "Role")
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert not {"*"} & {part for pair in allowed for part in pair}
    assert not {resource for resource, _ in allowed} & {"secrets", "pods/exec", "serviceaccounts"}


def test_the_training_sdk_reads_our_job() -> None:
    from kubeflow.training import ApiClient, KubeflowOrgV1PyTorchJob
    from kubeflow.training.models import KubeflowOrgV1PyTorchJobSpec

    made = pytorchjob(launch(), recipe(), "s3://unic")
    known = set(KubeflowOrgV1PyTorchJobSpec.attribute_map.values())
    assert made["spec"].keys() <= known
    job = KubeflowOrgV1PyTorchJob(api_version=made["apiVersion"], kind=made["kind"], spec=made["spec"])
    assert ApiClient().sanitize_for_serialization(job)["spec"] == made["spec"]


def test_both_kinds_run_the_same_container() -> None:
    job, ray = pytorchjob(launch(), recipe(), "s3://unic"), rayjob(launch(backend="rayjob"), recipe(), "s3://unic")
    (one,) = (t["spec"]["containers"][0] for t in templates(job))
    for template in templates(ray["spec"]["rayClusterSpec"]):
        other = template["spec"]["containers"][0]
        for key in ("image", "resources", "securityContext", "envFrom", "volumeMounts"):
            assert other[key] == one[key]
    assert ray["spec"]["entrypoint"].split() == one["args"]


def test_dockerfile_passes_hadolint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    dockerfile = K8S.parent / "docker/Dockerfile"
    done = subprocess.run([program, str(dockerfile)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
