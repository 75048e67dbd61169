"""What is shipped for Kubeflow Pipelines: the compiled pipeline, its custom resources, its rights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from k8s.render import HERE, bundle, compiled
from unic_core import __version__

VERSIONS = ("1.27", "1.33", "1.36")


@pytest.fixture(scope="module")
def overlay() -> list[dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return list(yaml.safe_load_all(bundle(HERE / "overlays/kfp")))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(Path(HERE, "pipeline", name).read_text()))


def test_compiled_files_are_in_step_with_the_code() -> None:
    for path, text in compiled().items():
        assert (HERE / path).read_text() == text, f"{path} is old; run: python -m k8s.render"


def test_custom_resources_hold_the_same_pipeline() -> None:
    ir, platform = documents("unic.yaml")
    pipeline, version = documents("resources.yaml")
    assert {r["apiVersion"] for r in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert version["metadata"] == {"name": f"unic-{__version__}", "namespace": pipeline["metadata"]["namespace"]}
    spec = version["spec"]
    assert spec["pipelineName"] == pipeline["metadata"]["name"]
    assert spec["pipelineSpec"] == ir
    assert spec["platformSpec"] == platform


def test_kubeflow_can_read_what_is_compiled() -> None:
    """As the API server does it: by the messages that it is made of, which refuse unknown fields."""
    ir, platform = documents("unic.yaml")
    spec = json_format.ParseDict(ir, pipeline_spec_pb2.PipelineSpec())
    assert spec.pipeline_info.name == "unic"
    assert json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec()).platforms["kubernetes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid(overlay: list[dict[str, Any]], version: str) -> None:
    for item in overlay:
        kubernetes_validate.validate(item, version, strict=True)


def test_nothing_that_others_use_is_changed(overlay: list[dict[str, Any]]) -> None:
    """It is applied to a namespace that Kubeflow's own pods share."""
    kinds = [item["kind"] for item in overlay]
    assert "Namespace" not in kinds
    assert "Secret" not in kinds
    policies = [item for item in overlay if item["kind"] == "NetworkPolicy"]
    assert [p["spec"]["podSelector"]["matchLabels"] for p in policies] == [{"app.kubernetes.io/part-of": "unic"}]


def test_the_rights_of_the_steps_are_what_they_need(overlay: list[dict[str, Any]]) -> None:
    roles = {item["metadata"]["name"]: item["rules"] for item in overlay if item["kind"] == "Role"}
    assert roles["unic-pipeline"] == [
        {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kfp-launcher"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["unic-artifacts"], "verbs": ["get"]},
    ]
    bound = {
        (item["roleRef"]["name"], subject["name"], subject["namespace"])
        for item in overlay
        if item["kind"] == "RoleBinding"
        for subject in item["subjects"]
    }
    assert bound >= {
        (role, account, "kubeflow")
        for role in ("unic-pipeline", "unic-launcher")
        for account in ("unic-pipeline", "pipeline-runner")
    }


def test_the_launcher_is_told_where_artifacts_go(overlay: list[dict[str, Any]]) -> None:
    (found,) = (item["data"] for item in overlay if item["metadata"]["name"] == "kfp-launcher")
    store = yaml.safe_load(found["providers"])["s3"]["default"]
    assert found["defaultPipelineRoot"].startswith("s3://")
    assert store["credentials"]["secretRef"]["secretName"] == "unic-artifacts"
