"""The job on a real cluster: from `kubectl apply` to a student, and what happens to mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from mlflow import MlflowClient

from tests.k8s.help import NAMESPACE, ROOT, STORE, forwarded, get, kubectl, settings, small, until
from unic_core.config import dump_config
from unic_core.errors import UnicError
from unic_core.storage import open_store
from workflows.launch import Launcher, open_launcher
from workflows.launch.jobs import PYTORCHJOB, ClusterJobs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def condition(name: str) -> str | None:
    conditions = get("pytorchjob", name).get("status", {}).get("conditions", [])
    return next((c["type"] for c in conditions if c["type"] in {"Succeeded", "Failed"} and c["status"] == "True"), None)


def pods(job: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in get("pods", selector=f"training.kubeflow.org/job-name={job}")["items"]]


def test_apply_gives_a_student_and_applying_again_does_nothing(services: None, remove: Callable[[str], None]) -> None:
    remove("smoke")
    file = str(ROOT / "k8s/unic-job.yaml")
    kubectl("apply", "-f", file)
    until(lambda: condition("smoke"), "the end of the job", 600)
    assert condition("smoke") == "Succeeded", kubectl("-n", NAMESPACE, "logs", "smoke-worker-0")

    stored = open_store(f"{STORE}/runs/smoke").list()
    assert {"config.yaml", "student/model.safetensors", "student/README.md", "report/index.html"} <= stored.keys()
    assert any(key.startswith("checkpoints/step-") and key.endswith("MANIFEST.json") for key in stored)

    with forwarded("mlflow", 5000) as uri:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("unic").experiment_id
        (parent,) = client.search_runs([experiment], "attributes.run_name = 'smoke'", max_results=1)
        children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
        distill = next(run for run in children if run.info.run_name == "distill")
        assert client.get_metric_history(distill.info.run_id, "distill/loss")[-1].step == 12
        assert client.get_registered_model("unic-student").aliases

    before = get("pytorchjob", "smoke")["metadata"]
    said = kubectl("apply", "-f", file)
    assert "pytorchjob.kubeflow.org/smoke unchanged" in said
    after = get("pytorchjob", "smoke")["metadata"]
    assert (after["uid"], after["generation"]) == (before["uid"], before["generation"])
    until(lambda: pods("smoke") == ["smoke-worker-0"], "the other pod to go", 60)


def test_a_deleted_job_that_is_applied_again_finds_its_run_complete(
    launcher: Launcher, remove: Callable[[str], None]
) -> None:
    remove("twice")
    lines: list[str] = []
    for _ in range(2):
        assert launcher.submit(small("twice"), STORE)
        status = launcher.wait("twice", lines.append, lines.append)
        assert status.phase == "succeeded", (status, lines)
        assert launcher.cancel("twice")
        until(lambda: launcher.status("twice").phase == "absent", "the deletion")
    assert lines.count("student: s3://unic/runs/twice/student") == 1
    assert lines.count("run twice is complete, nothing to do: s3://unic/runs/twice") == 1


def test_a_mistake_in_the_config_fails_at_once_with_a_sentence(services: None, remove: Callable[[str], None]) -> None:
    remove("smoke")
    objects = list(yaml.safe_load_all((ROOT / "k8s/unic-job.yaml").read_text()))
    config = next(o for o in objects if o["metadata"]["name"] == "smoke-config")
    config["data"]["run.yaml"] = config["data"]["run.yaml"].replace("momentum_start", "momentum_begin")
    kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    until(lambda: condition("smoke"), "the end of the job", 120)
    assert condition("smoke") == "Failed"
    pod = get("pod", "smoke-worker-0")
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == 2
    assert "momentum_begin" in terminated["message"]
    assert "\n" not in terminated["message"].strip()
    log = kubectl("-n", NAMESPACE, "logs", "smoke-worker-0")
    assert f"error: {terminated['message']}" in log
    assert "Traceback" not in log
    assert not open_store(f"{STORE}/runs/smoke").list()


def test_the_same_name_attaches_and_another_config_is_refused(
    launcher: Launcher, remove: Callable[[str], None]
) -> None:
    remove("again")
    run = small("again")
    assert launcher.submit(run, STORE)
    assert not launcher.submit(run, STORE)
    with pytest.raises(UnicError, match=r"there is a PyTorchJob again .* with another config"):
        launcher.submit(small("again", "seed=1"), STORE)
    assert launcher.status("again").phase in {"pending", "running"}
    assert get("configmap", "again-config")["data"]["run.yaml"] == dump_config(run)
    assert launcher.cancel("again")
    until(lambda: launcher.status("again").phase == "absent", "the deletion")
    until(lambda: "again-config" not in kubectl("-n", NAMESPACE, "get", "cm", "-o", "name"), "the config map to go")
    assert not launcher.cancel("again")


def test_what_keeps_a_job_from_running_is_said(services: None, remove: Callable[[str], None]) -> None:
    cases = {
        "no-image": ({"image": "unic:never-built"}, "the image .*unic:never-built can't be pulled"),
        "too-big": ({"cpu_request": "1000", "cpu": "1000"}, "no node has room for too-big-worker-0"),
    }
    for name, (changes, sentence) in cases.items():
        remove(name)
        launcher = open_launcher(settings(**changes))
        launcher.submit(small(name), STORE)

        def said(launcher: Launcher = launcher, name: str = name, sentence: str = sentence) -> bool:
            return any(re.search(sentence, reason) for reason in launcher.status(name).reasons)

        until(said, f"the sentence {sentence!r}", 60)
        launcher.cancel(name)


def test_a_quota_is_named_with_its_numbers(services: None, remove: Callable[[str], None]) -> None:
    remove("poor")
    kubectl("-n", NAMESPACE, "create", "quota", "small", "--hard=requests.memory=1Mi")
    try:
        launcher = open_launcher(settings())
        launcher.submit(small("poor"), STORE)
        found = until(lambda: launcher.status("poor").reasons, "a reason", 60)
        assert "the quota small does not allow these pods (requested: requests.memory=5Gi" in found[0]
        launcher.cancel("poor")
    finally:
        kubectl("-n", NAMESPACE, "delete", "resourcequota", "small")


def test_an_operator_that_does_not_run_is_told(services: None, remove: Callable[[str], None]) -> None:
    remove("idle")
    launcher = open_launcher(settings())
    operator = ["-n", "kubeflow", "scale", "deployment/training-operator"]
    kubectl(*operator, "--replicas=0")
    pods = ("-n", "kubeflow", "get", "pods", "-o", "name")
    try:
        until(lambda: "training-operator" not in kubectl(*pods), "the end of its pod", 120)
        with pytest.raises(UnicError, match=r"the operator's check validator.* see whether the operator runs"):
            launcher.submit(small("idle"), STORE)
    finally:
        kubectl(*operator, "--replicas=1")
        until(lambda: takes_jobs(launcher), "the operator's return")  # its pod is ready before its check answers


def takes_jobs(launcher: Launcher) -> bool:
    try:
        launcher.submit(small("idle"), STORE)
    except UnicError:
        return False
    return True


def test_a_cluster_without_the_operator_is_told(services: None) -> None:
    unknown = replace(PYTORCHJOB, group="kubeflow.invalid")  # what a cluster without the operator answers
    with pytest.raises(UnicError, match="the cluster knows no PyTorchJob; install the Kubeflow training operator"):
        ClusterJobs(unknown, settings()).submit(small("nobody"), STORE)
    with pytest.raises(UnicError, match="there is no namespace nowhere; create it with: kubectl apply"):
        open_launcher(settings(namespace="nowhere")).submit(small("nobody"), STORE)
