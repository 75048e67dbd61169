"""Steps of the pipeline in a `restricted` namespace under exactly the shipped rights; jobs that end when they should.

Those marked as needing the image run the steps themselves there: build it from this code first.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.help import IMAGE, STORE, kubectl, small, until, wipe
from tests.k8s.kfp_pods import (
    ACCOUNT,
    NAMESPACE,
    Step,
    compiled,
    describe,
    make_namespace,
    remove_namespace,
    run_step,
)
from unic_core import __version__
from unic_core.config import dump_config
from unic_core.storage import open_store
from workflows.request import PipelineRequest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

LAUNCH = {"image": IMAGE, "memory": "5Gi", "cpu_request": "100m", "shared_memory": "512Mi", "scratch": "5Gi"}
FOLLOW = """
import json, sys
from unic_core.config import read_config
from workflows.console import show_logs
from workflows.launch.config import LaunchConfig
from workflows.launch.step import follow_job
from unic_core.errors import UnicError
show_logs(err=False)
launch, text = json.loads(sys.argv[1]), open(sys.argv[2]).read()
try:
    follow_job(LaunchConfig(**launch), read_config(text, "test"), "s3://unic", lambda line: print(line, flush=True))
except UnicError as error:
    print(f"error: {error}", flush=True)
    sys.exit(2)
"""
ENDLESS = "training.steps=1000000"


@pytest.fixture(params=["pytorchjob", "rayjob"])
def backend(request: pytest.FixtureRequest) -> str:
    """What trains."""
    if request.param == "rayjob":
        request.getfixturevalue("kuberay")
    return str(request.param)


@pytest.fixture(scope="module")
def namespace(services: None) -> Iterator[str]:
    remove_namespace()
    make_namespace()
    yield NAMESPACE
    remove_namespace()


def job(name: str, kind: str = "pytorchjob") -> dict[str, Any] | None:
    found = kubectl("-n", NAMESPACE, "get", kind, name, "--ignore-not-found", "-o", "json")
    return dict(json.loads(found)) if found.strip() else None


def pods_of(name: str) -> list[str]:
    """Pods of a run's job, of either kind."""
    pods = kubectl("-n", NAMESPACE, "get", "pods", "-o", "name").split()
    return [pod for pod in pods if pod.startswith(f"pod/{name}-")]


def has_checkpoint(name: str) -> bool:
    return any(key.endswith("/MANIFEST.json") for key in open_store(f"{STORE}/runs/{name}/checkpoints").list())


def is_training(name: str) -> bool:
    return "of 1,000,000" in kubectl("-n", NAMESPACE, "logs", f"{name}-worker-0", check=False)


@pytest.fixture
def clean() -> Iterator[Callable[[str], None]]:
    """Removes a run's job and whatever of it lies on S3, before and after the test."""
    names: list[str] = []

    def register(name: str) -> None:
        wipe(name, NAMESPACE)
        names.append(name)

    yield register
    for name in names:
        wipe(name, NAMESPACE)


@pytest.mark.parametrize("step", ["prepare", "distill", "evaluate", "report", "promote"])
def test_the_namespace_takes_the_pod_of_every_step(namespace: str, step: str) -> None:
    """As Kubeflow would make it; the answer to one with capabilities shows that the standard is enforced."""
    ir, _ = compiled()
    body = describe(step, step, dict.fromkeys(ir["components"][f"comp-{step}"]["inputDefinitions"]["parameters"], ""))
    ask = ("create", "--dry-run=server", "-f", "-")
    assert "created (server dry run)" in kubectl(*ask, stdin=json.dumps(body))
    del body["spec"]["containers"][0]["securityContext"]["capabilities"]
    assert "violates PodSecurity" in kubectl(*ask, stdin=json.dumps(body), check=False)


# ---------------------------------------------------------------- the launcher alone, as a process of this machine


@pytest.fixture
def account(namespace: str, tmp_path: Path) -> Path:
    """A kubeconfig with the rights of the shipped account."""
    token = kubectl("-n", namespace, "create", "token", ACCOUNT, "--duration=1h").strip()
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture
def owner(namespace: str) -> Iterator[Callable[[str], dict[str, str]]]:
    """Makes pods that only exist, to own jobs as the pods of steps do."""
    pods: list[str] = []

    def make(name: str) -> dict[str, str]:
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsUser": 10001}
        security |= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        container = {"name": "main", "image": IMAGE, "command": ["sleep", "3600"], "securityContext": security}
        metadata = {"name": name, "namespace": NAMESPACE}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
        kubectl("-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found", "--grace-period=1")
        made = json.loads(kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(body)))
        pods.append(name)
        return {"name": name, "uid": made["metadata"]["uid"]}

    yield make
    for name in pods:
        kubectl("-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found", "--grace-period=1", "--wait=false")


class Follower:
    """`follow_job` in a process of its own, as a step's Python is."""

    def __init__(
        self,
        directory: Path,
        account: Path,
        name: str,
        owner: dict[str, str],
        *overrides: str,
        backend: str = "pytorchjob",
    ) -> None:
        config = directory / f"{name}.yaml"
        config.write_text(dump_config(small(name, "cluster.workers=1", *overrides)))
        launch = LAUNCH | {"namespace": NAMESPACE, "owner": owner, "stage": "distill", "backend": backend}
        self.log = directory / f"{owner['name']}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FOLLOW, json.dumps(launch), str(config)],
                env=os.environ | {"KUBECONFIG": str(account)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def said(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.log.read_text(), self.log.read_text()
        return text in self.log.read_text()


def test_sigterm_deletes_the_job_as_the_first_thing(
    backend: str, account: Path, owner: Callable[[str], dict[str, str]], clean: Callable[[str], None], tmp_path: Path
) -> None:
    name = f"cancelled-{backend}"
    clean(name)
    step = owner(f"step-{name}")
    follower = Follower(tmp_path, account, name, step, ENDLESS, backend=backend)
    until(lambda: follower.said("of 1,000,000 steps"), "progress of the training in the step's log", 300)
    found = job(name, backend)
    assert found is not None
    assert found["metadata"]["ownerReferences"][0]["uid"] == step["uid"]
    policy = found["spec"]["runPolicy"] if backend == "pytorchjob" else found["spec"]
    assert policy["activeDeadlineSeconds"] > 0

    follower.process.send_signal(signal.SIGTERM)
    assert follower.process.wait(5) == 128 + signal.SIGTERM
    left = job(name, backend)  # the pod that owns it is still there
    if backend == "pytorchjob":
        assert left is None
    else:
        assert left is None or left["metadata"]["deletionTimestamp"]  # KubeRay tidies up before it lets a job go
    until(lambda: not pods_of(name), "the pods' end", 120)


def test_a_step_whose_pod_was_deleted_continues_its_run(
    account: Path, owner: Callable[[str], dict[str, str]], clean: Callable[[str], None], tmp_path: Path
) -> None:
    clean("moved")
    overrides = ("training.steps=400", "training.checkpoint_every=50")
    first = Follower(tmp_path, account, "moved", owner("step-one"), *overrides)
    until(lambda: first.said("started PyTorchJob moved"), "the job", 60)
    second = Follower(tmp_path, account, "moved", owner("step-two"), *overrides)
    until(lambda: second.said("attached to PyTorchJob moved"), "the second step's attachment", 60)
    until(lambda: has_checkpoint("moved"), "a checkpoint", 300)
    first.process.kill()  # a lost node gives no time for anything
    first.process.wait()
    kubectl("-n", NAMESPACE, "delete", "pod", "step-one", "--grace-period=0", "--force")
    until(lambda: second.said("went with the pod that had started it"), "the job's end with its owner", 120)
    assert second.process.wait(600) == 0, second.log.read_text()
    said = second.log.read_text()
    assert "started PyTorchJob moved" in said
    assert "continuing at step" in said
    assert open_store(f"{STORE}/runs/moved").exists("student/config.json")


def test_the_reason_of_a_failure_is_the_clusters(
    account: Path, owner: Callable[[str], dict[str, str]], clean: Callable[[str], None], tmp_path: Path
) -> None:
    clean("wrong")
    follower = Follower(tmp_path, account, "wrong", owner("step-wrong"), "data.train=[{dataset: nowhere}]")
    assert follower.process.wait(300) == 2
    last = follower.log.read_text().splitlines()[-1]
    assert last.startswith("error: the PyTorchJob wrong failed: ")
    assert "nowhere" in last


# ---------------------------------------------------------------- the steps themselves; these need the image


def parameters(**changes: Any) -> dict[str, Any]:
    short = ["cluster.workers=1", "evaluation.random_student=false", "evaluation.c_values=[1.0]"]
    values = {"recipe": "smoke", "recipe_overrides": short, "image": IMAGE, "distill_pod_memory": "5Gi"}
    return PipelineRequest(**(values | changes)).parameters()


def distill_inputs(prepared: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    outputs = prepared["parameterValues"]
    return {
        "config": outputs["config"],
        "datasets": outputs["datasets"],
        "storage_root": given["storage_root"],
        "launcher": given["distill_launcher"],
        "image": given["image"],
        "pod_memory": given["distill_pod_memory"],
        "workers_per_pod": given["distill_workers_per_pod"],
        "code_version": __version__,
    }


def prepare(name: str, **changes: Any) -> dict[str, Any]:
    """Inputs of the distill step, from a prepare step that has run."""
    given = parameters(run_name=name, **changes)
    prepared = run_step("prepare", "prepare", given | {"code_version": __version__}).finish()
    return distill_inputs(prepared, given) | {"probes": prepared["parameterValues"]["probes"]}


def test_the_chain_of_steps_as_pods(backend: str, namespace: str, clean: Callable[[str], None]) -> None:
    name = f"chain-{backend}"
    clean(name)
    inputs = prepare(name, distill_launcher=backend)
    (probe,) = inputs.pop("probes")
    step = run_step("distill", "distill", inputs)
    outputs = step.finish(900)
    run = outputs["parameterValues"]["Output"]
    assert run == f"{STORE}/runs/{name}"
    (model,) = outputs["artifacts"]["student"]["artifacts"]
    assert model["metadata"]["uri"] == f"{run}/student"
    assert model["metadata"]["mlflow_run"]
    assert re.search(rf"\[distill\] started {backend} {name}", step.log(), re.IGNORECASE)

    common = {"config": inputs["config"], "code_version": __version__}
    more = {"datasets": inputs["datasets"], "run": run, "dataset": probe, "storage_root": STORE}
    rows = run_step("evaluate", "evaluate", common | more).finish()["parameterValues"]["Output"]
    reported = run_step("report", "report", common | {"run": run, "rows": [rows]}).finish()
    assert reported["parameterValues"]["Output"] == []
    (metrics,) = reported["artifacts"]["metrics"]["artifacts"]
    assert {"digits/top1", "digits/top1/lite0"} <= metrics["metadata"].keys()
    promoted = run_step("promote", "promote", common | {"missing": [], "fail_on_missing": True}).finish()
    assert "unic-student version" in promoted["parameterValues"]["Output"]

    step.delete()  # what Kubeflow's "delete run" does
    until(lambda: job(name, backend) is None, "the job's end with its owner", 60)


def test_a_terminated_step_leaves_nothing_behind(namespace: str, clean: Callable[[str], None]) -> None:
    clean("terminated")
    inputs = prepare("terminated", recipe_overrides=[ENDLESS, "cluster.workers=1"])
    inputs.pop("probes")
    step = run_step("distill", "distill", inputs)
    until(lambda: is_training("terminated") and "of 1,000,000" in step.log(), "the training's progress", 300)
    step.terminate()
    until(lambda: job("terminated") is None, "the job's deletion", 10)
    assert until(step.phase, "the step's end", 30) == "Failed"


def test_a_step_whose_pod_is_made_again_finishes_the_run(namespace: str, clean: Callable[[str], None]) -> None:
    clean("again")
    steps = ["training.steps=400", "training.checkpoint_every=50", "cluster.workers=1"]
    inputs = prepare("again", recipe_overrides=steps)
    inputs.pop("probes")
    first = run_step("distill", "distill", inputs)
    until(lambda: has_checkpoint("again"), "a checkpoint", 300)
    first.delete("--grace-period=0", "--force")
    second: Step = run_step("distill", "distill", inputs)
    assert second.finish(900)["parameterValues"]["Output"] == f"{STORE}/runs/again"
