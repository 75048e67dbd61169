"""What a step of a pipeline hands on to the job it starts. What it does in a cluster: tests/k8s/test_pipeline.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from unic_core import load_config
from unic_core.errors import UnicError
from workflows.launch.pods import container
from workflows.launch.step import settings_from

POD = {"KFP_POD_NAME": "unic-abc-1", "KFP_POD_UID": "123-456"}
TASK = {"MLFLOW_RUN_ID": "task", "KFP_MLFLOW_CONFIG": '{"parentRunId": "run"}', "KFP_RUN_ID": "r", "KFP_UI_URL": ""}


@pytest.fixture
def namespace(tmp_path: Path) -> Path:
    (tmp_path / "namespace").write_text("team-a\n")
    return tmp_path / "namespace"


def test_the_job_belongs_to_the_steps_pod_and_namespace(namespace: Path) -> None:
    launch = settings_from(POD | {"AWS_SECRET_ACCESS_KEY": "secret"}, namespace, backend="rayjob", memory="8Gi")
    assert launch.owner is not None
    assert (launch.namespace, launch.owner.name, launch.owner.uid) == ("team-a", "unic-abc-1", "123-456")
    assert (launch.stage, launch.backend, launch.memory, launch.environment) == ("distill", "rayjob", "8Gi", {})


def test_runs_that_kubeflow_made_are_handed_on(namespace: Path) -> None:
    launch = settings_from(POD | TASK, namespace, backend="pytorchjob")
    variables = {item["name"]: item["value"] for item in container(launch, load_config("smoke"))["env"]}
    assert variables.items() >= {key: value for key, value in TASK.items() if value}.items()
    assert "KFP_UI_URL" not in variables


@pytest.mark.parametrize("missing", ["KFP_POD_NAME", "KFP_POD_UID"])
def test_outside_of_a_step_only_this_machine_can_train(namespace: Path, missing: str) -> None:
    environment = {key: value for key, value in POD.items() if key != missing}
    with pytest.raises(UnicError, match="this is no step in a cluster; choose the launcher local"):
        settings_from(environment, namespace, backend="pytorchjob")
    with pytest.raises(UnicError, match="this is no step in a cluster"):
        settings_from(POD, namespace.with_name("none"), backend="pytorchjob")
